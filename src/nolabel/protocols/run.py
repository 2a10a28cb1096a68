"""Evaluation protocols: their table, and `evaluate`, which runs one of them.

`nolabel.protocols.compare.compare` evaluates several encoders on the same data. Torch and the
protocols are imported when one runs, so `nolabel list protocols` is quick.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, cast

from nolabel._moved import present_options
from nolabel.catalogue import Entry, by_name
from nolabel.errors import UsageError, did_you_mean, unknown

if TYPE_CHECKING:
    from pathlib import Path

    from nolabel.data.open import SourceSpec
    from nolabel.data.source import Source
    from nolabel.encoders.encoder import Encoder
    from nolabel.encoders.features import Features
    from nolabel.protocols.attention import FigureSplits
    from nolabel.protocols.copies import Copies
    from nolabel.protocols.data.davis import Clips
    from nolabel.protocols.data.revisited import Revisited
    from nolabel.protocols.report import Report

    # The test data of a protocol: opened, and as the user names it.
    TestSet = Source | Revisited | Clips | FigureSplits | Copies | Path | tuple[SourceSpec, ...]
    TestSpec = SourceSpec | TestSet

__all__ = [
    "PROTOCOLS",
    "ProtocolInfo",
    "evaluate",
    "find",
    "make_options",
    "open_test",
    "options_of",
    "run",
]


@dataclass(frozen=True, kw_only=True)
class ProtocolInfo(Entry):
    """An entry of `PROTOCOLS`.

    Attributes:
        function: module:function(encoder, train, test, *, features=None, **options) -> Report. The
            module has a frozen dataclass `Options` with a default for every field.
        learns: whether it needs a labelled training set.
        takes_features: whether it only needs frozen features, which can be shared by protocols.
        test_set: its test data: "source", images as `open_source` takes them; "own", a layout of
            its own, which `open_test(test, encoder)` of its module opens; or "either".
        test_help: what `--test` takes, for protocols that train nothing.
    """

    function: str
    learns: bool = False
    takes_features: bool = False
    test_set: str = "source"
    test_help: str = "SRC with labels, captions or both"


PROTOCOLS: dict[str, ProtocolInfo] = by_name(
    ProtocolInfo(
        name="knn",
        function="nolabel.protocols.knn:run_knn",
        description="weighted vote of the k nearest training images; nothing is trained",
        paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
        needs="labels",
        learns=True,
        takes_features=True,
    ),
    ProtocolInfo(
        name="linear",
        function="nolabel.protocols.linear:run_linear",
        description="linear classifier on frozen features, learning rate chosen on held-out images",
        paper="Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023",
        needs="labels",
        learns=True,
        takes_features=True,
    ),
    ProtocolInfo(
        name="fewshot",
        function="nolabel.protocols.fewshot:run_fewshot",
        description="classifiers from k labelled images a class, over random draws of them",
        paper=(
            "Wang et al., SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot "
            "Learning, 2019"
        ),
        needs="labels",
        learns=True,
        takes_features=True,
    ),
    ProtocolInfo(
        name="finetune",
        function="nolabel.protocols.finetune:run_finetune",
        description=(
            "fine-tunes the network, with lower learning rates in early layers; --save writes it"
        ),
        paper="He et al., Masked Autoencoders Are Scalable Vision Learners, 2021",
        needs="labels",
        learns=True,
    ),
    ProtocolInfo(
        name="zeroshot",
        function="nolabel.protocols.zeroshot:run_zeroshot",
        description=(
            "classification by class names, and retrieval of images and captions; no --train"
        ),
        paper=(
            "Radford et al., Learning Transferable Visual Models From Natural Language "
            "Supervision, 2021"
        ),
        needs="a text tower",
        takes_features=True,
    ),
    ProtocolInfo(
        name="robustness",
        function="nolabel.protocols.robustness:run_robustness",
        description=(
            "a linear head on corruptions and other domains (--domains NAME=SRC, column domain)"
        ),
        paper=(
            "Taori et al., Measuring Robustness to Natural Distribution Shifts in Image "
            "Classification, 2020"
        ),
        needs="labels",
        learns=True,
        takes_features=True,
    ),
    ProtocolInfo(
        name="transfer",
        function="nolabel.protocols.transfer:run_transfer",
        description="k-NN and linear on several sets (--test A,B,C) and their mean; no --train",
        paper="Kornblith et al., Do Better ImageNet Models Transfer Better?, 2018",
        needs="labels",
        test_set="own",
        test_help="SRC,SRC,...: sets with labels",
    ),
    ProtocolInfo(
        name="retrieval",
        function="nolabel.protocols.retrieval:run_retrieval",
        description=(
            "retrieval of the same group or class, or of landmarks (gnd_NAME.pkl); no --train"
        ),
        paper=(
            "Radenovic et al., Revisiting Oxford and Paris: Large-Scale Image Retrieval "
            "Benchmarking, 2018"
        ),
        needs="groups, labels or landmarks",
        takes_features=True,
        test_set="either",
        test_help="SRC with groups or labels, or a folder with gnd_NAME.pkl",
    ),
    ProtocolInfo(
        name="copies",
        function="nolabel.protocols.copies:run_copies",
        description="retrieval of the originals of altered copies (any set, Copydays); no --train",
        paper="Douze et al., Evaluation of GIST descriptors for web-scale image search, 2009",
        test_set="own",
        test_help="SRC, or a folder in the layout of Copydays",
    ),
    ProtocolInfo(
        name="attention",
        function="nolabel.protocols.attention:run_attention",
        description=(
            "IoU of the class token's attention with masks of figures (creatures, VOC); no --train"
        ),
        paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
        needs="a ViT, and masks",
        test_set="own",
        test_help="creatures, or a folder in the layout of PASCAL VOC",
    ),
    ProtocolInfo(
        name="labelfree",
        function="nolabel.protocols.labelfree:run_labelfree",
        description=(
            "RankMe, LiDAR, alpha-ReQ and self-retrieval, which need no labels; no --train"
        ),
        paper=(
            "Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained "
            "Self-Supervised Representations by Their Rank, 2023"
        ),
        test_help="SRC",
    ),
    ProtocolInfo(
        name="video",
        function="nolabel.protocols.video:run_video",
        description=(
            "mask propagation in videos by patch similarity (creatures, DAVIS-2017); no --train"
        ),
        paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
        needs="videos with masks",
        test_set="own",
        test_help="creatures, or a folder in the layout of DAVIS-2017",
    ),
)


def evaluate(
    protocol: str,
    encoder: Encoder | str | os.PathLike[str],
    train: SourceSpec | None = None,
    test: TestSpec | None = None,
    *,
    image_size: int | None = None,
    **options: object,
) -> Report:
    """Evaluates an encoder.

    Args:
        protocol: a name in `PROTOCOLS`.
        encoder: an encoder, or what `nolabel.encoders.load` takes.
        train: labelled images, as `open_source` takes them; None for protocols without training,
            such as `zeroshot`.
        test: labelled images of the same classes. None takes the `:test` split of a named set; for
            other sets, a fifth of every class of train is split off (fixed seed).
        image_size: side in pixels at which the encoder is used; None is its own.
        **options: fields of the protocol's `Options`.

    Raises:
        UsageError: unknown protocol or option; or train and test are the same images.
        DataError: no labels, one class only, or classes in test that train does not have.
    """
    checked = make_options(protocol, options)
    from nolabel.data.source import Source
    from nolabel.encoders.loading import load_at
    from nolabel.protocols.sets import open_sets

    loaded = load_at(encoder, image_size)
    if not find(protocol).learns:
        if train is not None or test is None:
            raise UsageError(
                f"The protocol {protocol!r} has no training: give --test and no --train."
            )
        opened = open_test(protocol, loaded, test)
        notes = opened.notes if isinstance(opened, Source) else ()
        return run(protocol, loaded, None, opened, options=checked, notes=notes)
    if train is None:
        raise UsageError(f"The protocol {protocol!r} needs --train: labelled images to train on.")
    train_set, test_set, notes = open_sets(
        train,
        cast("SourceSpec | None", test),
        image_size=loaded.image_size,
        channels=loaded.channels,
    )
    return run(protocol, loaded, train_set, test_set, options=checked, notes=notes)


def run(
    protocol: str,
    encoder: Encoder,
    train: Source | None,
    test: TestSet,
    *,
    options: object = None,
    features: tuple[Features, Features] | None = None,
    notes: tuple[str, ...] = (),
) -> Report:
    """Runs a protocol on opened data.

    Args:
        protocol: a name in `PROTOCOLS`.
        encoder: the encoder.
        train: labelled images; None for protocols without training.
        test: what `open_test` returns, or labelled images of the same classes.
        options: the protocol's `Options`; None takes the defaults.
        features: features of train and test if they were computed before.
        notes: notes for the report, before the protocol's own.
    """
    values = {} if options is None else vars(options)
    function = vars(_module_of(protocol))[find(protocol).function.partition(":")[2]]
    report: Report = function(encoder, train, test, features=features, **values)
    return dataclasses.replace(report, notes=(*notes, *report.notes))


def open_test(protocol: str, encoder: Encoder, test: TestSpec) -> TestSet:
    """Opens the test data of a protocol without training, some of which have their own layout.

    Args:
        protocol: a name in `PROTOCOLS`.
        encoder: the encoder, for its image size and channels.
        test: the test data as the user names them.

    Raises:
        UsageError, DataError: the data cannot be opened.
    """
    from nolabel.data.open import open_source

    if find(protocol).test_set != "source":
        return _module_of(protocol).open_test(test, encoder)
    return open_source(
        cast("SourceSpec", test),
        image_size=encoder.image_size,
        split_default="test",
        channels=encoder.channels,
    )


def find(protocol: str) -> ProtocolInfo:
    """The protocol's entry in `PROTOCOLS`.

    Raises:
        UsageError: unknown name.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", str(protocol), PROTOCOLS)
    return PROTOCOLS[protocol]


def _module_of(protocol: str) -> ModuleType:
    """The protocol's module, imported when it is first used."""
    return importlib.import_module(find(protocol).function.partition(":")[0])


def options_of(protocol: str) -> type:
    """The protocol's option class, a frozen dataclass with a default for every field.

    Raises:
        UsageError: unknown name.
    """
    return _module_of(protocol).Options


def make_options(protocol: str, values: Mapping[str, object]) -> object:
    """Makes the options of a protocol.

    Args:
        protocol: a name in `PROTOCOLS`.
        values: option -> value; others have their default.

    Raises:
        UsageError: unknown protocol or option, or a value that is not allowed.
    """
    cls = options_of(protocol)
    values = present_options(f"evaluate {protocol}", values)
    fields = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in fields:
            raise UsageError(
                f"The protocol {protocol!r} has no option {name!r}."
                f"{did_you_mean(name, fields)} Allowed: {', '.join(fields)}."
            )
    return cls(**values)

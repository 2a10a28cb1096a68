"""Protocols: how good is an encoder? The table, and `evaluate`, which runs one of them.

`nolabel.protocols.compare.compare` puts several encoders into one table.
Nothing heavy is imported until a protocol runs, so that `nolabel list protocols` is quick.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, cast

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

    # What a protocol is tested on once it is opened; and what users give for it.
    TestSet = Source | Revisited | Clips | FigureSplits | Copies | Path | tuple[SourceSpec, ...]
    TestSpec = SourceSpec | TestSet

__all__ = [
    "PROTOCOLS",
    "ProtocolInfo",
    "evaluate",
    "find",
    "make_options",
    "open_sets",
    "open_test",
    "options_of",
    "run",
]


@dataclass(frozen=True, kw_only=True)
class ProtocolInfo(Entry):
    """One line of `PROTOCOLS`.

    Attributes:
        function: module:function(encoder, train, test, *, features=None, **options) -> Report. The
            module has a frozen dataclass `Options` with a default for every field.
        learns: whether it takes a labelled set to learn from.
        takes_features: whether it judges frozen features alone, so that they can be computed once.
        test_set: what it is tested on: "source", images as `open_source` takes them; "own", a
            layout of its own, which `open_test(test, encoder)` of its module opens; "either".
    """

    function: str
    learns: bool = False
    takes_features: bool = False
    test_set: str = "source"


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
            "the whole network learns the labels, early layers more slowly; --save keeps it"
        ),
        paper="He et al., Masked Autoencoders Are Scalable Vision Learners, 2021",
        needs="labels",
        learns=True,
    ),
    ProtocolInfo(
        name="zeroshot",
        function="nolabel.protocols.zeroshot:run_zeroshot",
        description=(
            "classes named by words, and images and captions that find each other; no --train"
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
            "one head over corruptions and other domains (--domains NAME=SRC, column domain)"
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
    ),
    ProtocolInfo(
        name="retrieval",
        function="nolabel.protocols.retrieval:run_retrieval",
        description=(
            "images find those of their group or class, or landmarks (gnd_NAME.pkl); no --train"
        ),
        paper=(
            "Radenovic et al., Revisiting Oxford and Paris: Large-Scale Image Retrieval "
            "Benchmarking, 2018"
        ),
        needs="groups, labels or landmarks",
        takes_features=True,
        test_set="either",
    ),
    ProtocolInfo(
        name="copies",
        function="nolabel.protocols.copies:run_copies",
        description="altered copies find their original (any set, Copydays); no --train",
        paper="Douze et al., Evaluation of GIST descriptors for web-scale image search, 2009",
        test_set="own",
    ),
    ProtocolInfo(
        name="attention",
        function="nolabel.protocols.attention:run_attention",
        description=(
            "the class token's attention against figures' masks (creatures, VOC); no --train"
        ),
        paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
        needs="a ViT, and masks",
        test_set="own",
    ),
    ProtocolInfo(
        name="labelfree",
        function="nolabel.protocols.labelfree:run_labelfree",
        description=(
            "RankMe, LiDAR, alpha-ReQ and self-retrieval: to choose without labels; no --train"
        ),
        paper=(
            "Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained "
            "Self-Supervised Representations by Their Rank, 2023"
        ),
    ),
    ProtocolInfo(
        name="video",
        function="nolabel.protocols.video:run_video",
        description=(
            "masks carried through videos by similar patches (creatures, DAVIS-2017); no --train"
        ),
        paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
        needs="videos with masks",
        test_set="own",
    ),
)
_SHARE, _SEED = 0.2, 0  # of the split made when there is no test set


def evaluate(
    protocol: str,
    encoder: Encoder | str | os.PathLike[str],
    train: SourceSpec | None = None,
    test: TestSpec | None = None,
    **options: object,
) -> Report:
    """Judges an encoder.

    Args:
        protocol: a name in `PROTOCOLS`.
        encoder: an encoder, or what `nolabel.encoders.load` takes.
        train: labelled images, as `open_source` takes them. A protocol that learns nothing
            (`zeroshot`) takes none.
        test: labelled images of the same classes. None takes the `:test` split of a named set;
            of anything else, a fifth of every class is split off, the same every time.
        **options: fields of the protocol's `Options`.

    Raises:
        UsageError: unknown protocol or option; or train and test are the same images.
        DataError: no labels, one class only, or classes in test that train does not have.
    """
    checked = make_options(protocol, options)
    from nolabel.encoders import Encoder, load

    chosen = encoder if isinstance(encoder, Encoder) else load(str(encoder))
    if not find(protocol).learns:
        if train is not None or test is None:
            raise UsageError(
                f"The protocol {protocol!r} learns nothing: give --test and no --train."
            )
        return run(protocol, chosen, None, open_test(protocol, chosen, test), options=checked)
    if train is None:
        raise UsageError(f"The protocol {protocol!r} needs --train: labelled images to learn from.")
    train_set, test_set, notes = open_sets(
        train,
        cast("SourceSpec | None", test),
        image_size=chosen.image_size,
        channels=chosen.channels,
    )
    return run(protocol, chosen, train_set, test_set, options=checked, notes=notes)


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
    """Runs a protocol on opened sources.

    Args:
        protocol: a name in `PROTOCOLS`.
        encoder: the encoder.
        train: labelled images; None for a protocol that needs none.
        test: labelled images of the same classes.
        options: the protocol's `Options`; None is its defaults.
        features: features of train and test, where they were computed before.
        notes: put before the protocol's own.
    """
    chosen = {} if options is None else vars(options)
    judge = vars(_module_of(protocol))[find(protocol).function.partition(":")[2]]
    report: Report = judge(encoder, train, test, features=features, **chosen)
    return dataclasses.replace(report, notes=(*notes, *report.notes))


def open_test(protocol: str, encoder: Encoder, test: TestSpec) -> TestSet:
    """The test set of a protocol that learns nothing; some have data of a layout of their own."""
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
    """The line of the table. Raises UsageError for an unknown name."""
    if protocol not in PROTOCOLS:
        raise unknown("protocol", str(protocol), PROTOCOLS)
    return PROTOCOLS[protocol]


def _module_of(protocol: str) -> ModuleType:
    """The protocol's file, imported when it is first used."""
    return importlib.import_module(find(protocol).function.partition(":")[0])


def options_of(protocol: str) -> type:
    """The protocol's class of options, a frozen dataclass with a default for every field."""
    return _module_of(protocol).Options


def make_options(protocol: str, given: Mapping[str, object]) -> object:
    """The protocol's options with some fields given. Raises UsageError for unknown ones."""
    kind = options_of(protocol)
    fields = [f.name for f in dataclasses.fields(kind)]
    for name in given:
        if name not in fields:
            raise UsageError(
                f"The protocol {protocol!r} has no option {name!r}."
                f"{did_you_mean(name, fields)} Allowed: {', '.join(fields)}."
            )
    return kind(**given)


def open_sets(
    train: SourceSpec,
    test: SourceSpec | None = None,
    *,
    image_size: int | None = None,
    channels: int = 3,
) -> tuple[Source, Source, tuple[str, ...]]:
    """Opens train and test, or makes a test set (see `evaluate`); returns notes on how.

    Raises:
        UsageError: train and test are the same images, or cannot be opened.
        DataError: a set to be split has no labels.
    """
    from nolabel.data.open import DATASETS, open_source
    from nolabel.data.source import split

    if test is None and isinstance(train, str):
        name, colon, part = train.partition(":")
        named = DATASETS.get(name)
        if named and "test" in named.splits and part in ("", "train") and (part or not colon):
            train, test = f"{name}:train", f"{name}:test"
    opened = open_source(train, image_size=image_size, channels=channels)
    if test is None:
        first, second = split(opened, _SHARE, _SEED)
        first.name, second.name = f"{opened.name} (80 %)", f"{opened.name} (other 20 %)"
        note = (
            f"no test set was given: {len(second)} of the {len(opened)} images were split off, "
            f"class by class (seed {_SEED})"
        )
        return first, second, (note,)
    other = open_source(test, image_size=image_size, split_default="test", channels=channels)
    if other is opened or _same_place(train, test, (opened.name, other.name)):
        raise UsageError(
            f"Train and test are the same images ({opened.name!r}), which would flatter any "
            "encoder. Give another test set, or none: a fifth of train is then split off."
        )
    return opened, other, ()


def _same_place(train: SourceSpec, test: SourceSpec, names: tuple[str, str]) -> bool:
    if not (isinstance(train, str | os.PathLike) and isinstance(test, str | os.PathLike)):
        return False
    a, b = os.fspath(train), os.fspath(test)
    if os.path.isdir(a) and os.path.isdir(b):
        return os.path.samefile(a, b)
    return names[0] == names[1]  # named sets carry their split in the name

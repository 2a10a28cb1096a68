"""Protocols: how good is an encoder?  The table, and `evaluate`, which runs one of them.

`nolabel.protocols.compare.compare` puts several encoders into one table.
Nothing heavy is imported until a protocol runs, so that `nolabel list protocols` is quick.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nolabel.errors import UsageError, did_you_mean, unknown

if TYPE_CHECKING:
    from nolabel.data.source import Source
    from nolabel.encoders.encoder import Encoder
    from nolabel.encoders.features import Features
    from nolabel.types import Report

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "evaluate",
    "find",
    "make_options",
    "open_sets",
    "open_test",
    "options_of",
    "run",
]


class Protocol(NamedTuple):
    """One line of the table of protocols."""

    name: str
    function: str  # module:function(encoder, train, test, *, features=None, **options) -> Report
    # "train": a set to learn from; "labels": of both sets; "features": judges frozen features
    # alone; "text": an encoder with a text tower; "own": opens its test set itself
    needs: tuple[str, ...]
    paper: str
    description: str


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "knn",
            "nolabel.protocols.knn:run_knn",
            ("train", "labels", "features"),
            "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
            "weighted vote of the k nearest training images; nothing is trained",
        ),
        Protocol(
            "linear",
            "nolabel.protocols.linear:run_linear",
            ("train", "labels", "features"),
            "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023",
            "linear classifier on frozen features, learning rate chosen on held-out images",
        ),
        Protocol(
            "fewshot",
            "nolabel.protocols.fewshot:run_fewshot",
            ("train", "labels", "features"),
            "Wang et al., SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot "
            "Learning, 2019",
            "classifiers from k labelled images a class, over random draws of them",
        ),
        Protocol(
            "finetune",
            "nolabel.protocols.finetune:run_finetune",
            ("train", "labels"),
            "He et al., Masked Autoencoders Are Scalable Vision Learners, 2021",
            "the whole network learns the labels, early layers more slowly; --save keeps it",
        ),
        Protocol(
            "zeroshot",
            "nolabel.protocols.zeroshot:run_zeroshot",
            ("text", "features"),
            "Radford et al., Learning Transferable Visual Models From Natural Language "
            "Supervision, 2021",
            "classes named by words, and images and captions that find each other; no --train",
        ),
        Protocol(
            "robustness",
            "nolabel.protocols.robustness:run_robustness",
            ("train", "labels", "features"),
            "Taori et al., Measuring Robustness to Natural Distribution Shifts in Image "
            "Classification, 2020",
            "one head over corruptions and other domains (--domains NAME=SRC, column domain)",
        ),
        Protocol(
            "transfer",
            "nolabel.protocols.transfer:run_transfer",
            ("own",),
            "Kornblith et al., Do Better ImageNet Models Transfer Better?, 2018",
            "k-NN and linear on several sets (--test A,B,C) and their mean; no --train",
        ),
        Protocol(
            "retrieval",
            "nolabel.protocols.retrieval:run_retrieval",
            ("features",),
            "Radenovic et al., Revisiting Oxford and Paris: Large-Scale Image Retrieval "
            "Benchmarking, 2018",
            "images find those of their group or class, or landmarks (gnd_NAME.pkl); no --train",
        ),
        Protocol(
            "copies",
            "nolabel.protocols.copies:run_copies",
            ("own",),
            "Douze et al., Evaluation of GIST descriptors for web-scale image search, 2009",
            "altered copies find their original (any set, Copydays); no --train",
        ),
        Protocol(
            "attention",
            "nolabel.protocols.attention:run_attention",
            ("own",),
            "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
            "the class token's attention against figures' masks (creatures, VOC); no --train",
        ),
        Protocol(
            "labelfree",
            "nolabel.protocols.labelfree:run_labelfree",
            (),
            "Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained "
            "Self-Supervised Representations by Their Rank, 2023",
            "RankMe, LiDAR, alpha-ReQ and self-retrieval: to choose without labels; no --train",
        ),
        Protocol(
            "video",
            "nolabel.protocols.video:run_video",
            ("own",),
            "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021",
            "masks carried through videos by similar patches (creatures, DAVIS-2017); no --train",
        ),
    )
}
_SHARE, _SEED = 0.2, 0  # of the split made when there is no test set


def evaluate(
    protocol: str,
    encoder: Encoder | str | os.PathLike[str],
    train: Any = None,
    test: Any = None,
    **options: Any,
) -> Report:
    """Judges an encoder.

    Args:
        protocol: A name in `PROTOCOLS`.
        encoder: An encoder, or what `nolabel.encoders.load` takes.
        train: Labelled images, as `open_source` takes them.  A protocol that learns nothing
            (`zeroshot`) takes none.
        test: Labelled images of the same classes.  None takes the `:test` split of a named set;
            of anything else, a fifth of every class is split off, the same every time.
        **options: Fields of the protocol's `Options`.

    Raises:
        UsageError: Unknown protocol or option; or train and test are the same images.
        DataError: No labels, one class only, or classes in test that train does not have.
    """
    checked = make_options(protocol, options)
    from nolabel.encoders import load

    chosen: Any = encoder if hasattr(encoder, "backbone") else load(str(encoder))
    if "train" not in find(protocol).needs:
        if train is not None or test is None:
            raise UsageError(
                f"The protocol {protocol!r} learns nothing: give --test and no --train."
            )
        return run(protocol, chosen, None, open_test(protocol, chosen, test), options=checked)
    if train is None:
        raise UsageError(f"The protocol {protocol!r} needs --train: labelled images to learn from.")
    train_set, test_set, notes = open_sets(
        train, test, image_size=chosen.image_size, channels=chosen.channels
    )
    return run(protocol, chosen, train_set, test_set, options=checked, notes=notes)


def run(
    protocol: str,
    encoder: Encoder,
    train: Source | None,
    test: Source,
    *,
    options: Any = None,
    features: tuple[Features, Features] | None = None,
    notes: tuple[str, ...] = (),
) -> Report:
    """Runs a protocol on opened sources.

    Args:
        protocol: A name in `PROTOCOLS`.
        encoder: The encoder.
        train: Labelled images; None for a protocol that needs none.
        test: Labelled images of the same classes.
        options: The protocol's `Options`; None is its defaults.
        features: Those of train and test, when they are there already.
        notes: Put before the protocol's own.
    """
    module, _, function = find(protocol).function.partition(":")
    chosen = {} if options is None else vars(options)
    judge = getattr(importlib.import_module(module), function)
    report: Report = judge(encoder, train, test, features=features, **chosen)
    return dataclasses.replace(report, notes=(*notes, *report.notes))


def open_test(protocol: str, encoder: Any, test: Any) -> Any:
    """The test set of a protocol that learns nothing; some have data of a layout of their own."""
    from nolabel.data.open import open_source

    module = importlib.import_module(find(protocol).function.partition(":")[0])
    if hasattr(module, "open_test"):
        return module.open_test(test, encoder)
    return open_source(
        test, image_size=encoder.image_size, split_default="test", channels=encoder.channels
    )


def find(protocol: str) -> Protocol:
    """The line of the table.  Raises UsageError for an unknown name."""
    if protocol not in PROTOCOLS:
        raise unknown("protocol", str(protocol), PROTOCOLS)
    return PROTOCOLS[protocol]


def options_of(protocol: str) -> Any:
    """The protocol's class of options, a frozen dataclass with a default for every field."""
    return importlib.import_module(find(protocol).function.partition(":")[0]).Options


def make_options(protocol: str, given: Mapping[str, Any]) -> Any:
    """The protocol's options with some fields given.  Raises UsageError for unknown ones."""
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
    train: Any, test: Any = None, *, image_size: int | None = None, channels: int = 3
) -> tuple[Source, Source, tuple[str, ...]]:
    """Opens train and test, or makes a test set (see `evaluate`); returns notes on how.

    Raises:
        UsageError: Train and test are the same images, or cannot be opened.
        DataError: A set to be split has no labels.
    """
    from nolabel.data.open import DATASETS, open_source
    from nolabel.data.source import split

    if test is None and isinstance(train, str):
        name, colon, part = train.partition(":")
        named = {n.name: n for n in DATASETS}.get(name)
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
            "encoder.  Give another test set, or none: a fifth of train is then split off."
        )
    return opened, other, ()


def _same_place(train: Any, test: Any, names: tuple[str, str]) -> bool:
    if not (isinstance(train, str | os.PathLike) and isinstance(test, str | os.PathLike)):
        return False
    a, b = os.fspath(train), os.fspath(test)
    if os.path.isdir(a) and os.path.isdir(b):
        return os.path.samefile(a, b)
    return names[0] == names[1]  # named sets carry their split in the name

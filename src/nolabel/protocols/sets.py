"""Opens train and test, and sees to it that they are independent of each other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from nolabel.data.copies import number_equal_images
from nolabel.data.open import DATASETS, open_source
from nolabel.data.readable import describe_skipped, leave_out_unreadable
from nolabel.data.source import Source, require_labels
from nolabel.data.split import independent_units, split
from nolabel.errors import UsageError, printable

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

_TEST_SHARE, _SPLIT_SEED = 0.2, 0  # of the split if there is no test set


def open_sets(
    train: SourceSpec,
    test: SourceSpec | None = None,
    *,
    image_size: int | None = None,
    channels: int = 3,
) -> tuple[Source, Source, tuple[str, ...]]:
    """Opens train and test; splits train if there is no test set (see `evaluate`).

    Args:
        train: labelled images.
        test: labelled images of the same classes, or None.
        image_size: side in pixels at which `creatures` are drawn.
        channels: number of channels of the images.

    Returns:
        Train, test, and notes on the split.

    Raises:
        UsageError: train and test are the same images, or cannot be opened.
        DataError: a set to be split has no labels.
    """
    named = isinstance(train, str) and train.partition(":")[0] in DATASETS
    if test is None and isinstance(train, str):
        name, colon, split_name = train.partition(":")
        dataset = DATASETS.get(name)
        whole_or_train = split_name == "train" or not colon
        if dataset and "test" in dataset.splits and whole_or_train:
            train, test = f"{name}:train", f"{name}:test"
    train_set = open_source(train, image_size=image_size, channels=channels)
    if test is None:
        return _split_off(train_set)
    test_set = open_source(test, image_size=image_size, split_default="test", channels=channels)
    if test_set is train_set or _same_images(train, test, (train_set.name, test_set.name)):
        raise _same_sets(train_set.name)
    notes = (*train_set.notes, *test_set.notes)
    both_named = named and isinstance(test, str) and test.partition(":")[0] in DATASETS
    return train_set, test_set, notes if both_named else (*notes, *_overlap(train_set, test_set))


def _split_off(source: Source) -> tuple[Source, Source, tuple[str, ...]]:
    """Splits a source in train and test; what cannot be read is left out before."""
    labels = require_labels(source)  # fail before the files are read
    whole, skipped = leave_out_unreadable(source)
    units, repeats = independent_units(whole)
    train, test = split(whole, _TEST_SHARE, _SPLIT_SEED, units=units)
    train.name, test.name = f"{source.name} (80 %)", f"{source.name} (other 20 %)"
    notes = [
        f"no test set was given: {len(test)} of the {len(whole)} images were split off, class by "
        f"class (seed {_SPLIT_SEED})"
    ]
    if source.groups is not None and whole.groups is not None:
        groups = len(np.unique(whole.groups))
        notes[0] += f"; the {groups:,} groups were kept whole"
    if repeats:
        notes.append(
            f"{repeats:,} image(s) repeat another one (listed twice, or copies); copies stay "
            "together in train or in test"
        )
    absent = np.setdiff1d(labels, np.asarray(test.labels)).tolist()
    if absent:
        first = source.classes[absent[0]] if source.classes else str(absent[0])
        notes.append(
            f"{len(absent)} class(es) are in train alone (first {first!r}): they have one image or "
            "group each"
        )
    return train, test, (*source.notes, *describe_skipped(source.name, skipped), *notes)


def _same_sets(name: str) -> UsageError:
    return UsageError(
        f"Train and test are the same images ({name!r}), so accuracies would be far "
        "too high. Give another test set, or none: a fifth of train is then split off."
    )


def _overlap(train: Source, test: Source) -> list[str]:
    """Notes on images and groups of test that are in train. Raises UsageError if all images are."""
    seen, asked = number_equal_images(train, test)
    shared = np.flatnonzero(np.isin(asked, seen))
    if len(test) and len(shared) == len(test):
        raise _same_sets(test.name)
    notes = []
    if len(shared):
        notes.append(
            f"{len(shared):,} of the {len(test):,} test images are in train too (equal files), "
            f"first {printable(test.path(int(shared[0])))}: accuracies are too high by up to "
            f"{len(shared) / len(test):.1%}"
        )
    groups = sorted(_group_names(train) & _group_names(test))
    if groups:
        notes.append(
            f"{len(groups):,} group(s) are in train and in test (first {groups[0]!r}), so that the "
            "test images are not independent and accuracies may be far too high"
        )
    return notes


def _group_names(source: Source) -> set[str]:
    """Names of the groups that have an image; empty if they have no names."""
    if source.groups is None:
        return set()
    present = set(np.unique(source.groups).tolist())
    return {name for i, name in enumerate(source.group_names) if i in present}


def _same_images(train: SourceSpec, test: SourceSpec, names: tuple[str, str]) -> bool:
    if not (isinstance(train, str | os.PathLike) and isinstance(test, str | os.PathLike)):
        return False
    a, b = os.fspath(train), os.fspath(test)
    if os.path.isdir(a) and os.path.isdir(b):
        return os.path.samefile(a, b)
    return names[0] == names[1]  # names of sets include the split

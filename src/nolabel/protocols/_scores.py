"""Shared by protocols: accuracies with confidence intervals, labels matched by class name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nolabel.data.labels import clean_name, nearest_spelling
from nolabel.data.readable import describe_skipped
from nolabel.data.source import Source, require_labels
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.errors import DataError

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
TOP = 5  # k of the top-k accuracy beside top-1


def wilson(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson confidence interval of a proportion, in 0..1 (Wilson, 1927).

    It covers the sampling of the test set, not the variance between training runs.

    Args:
        correct: number of successes.
        total: number of trials; 0 gives 0..1.
        z: quantile of the standard normal distribution; the default gives 95 %.
    """
    return interval(correct / total, total, z) if total > 0 else (0.0, 1.0)


def interval(share: float, total: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson confidence interval of a proportion, for a number of trials that may be fractional.

    Args:
        share: the proportion, in 0..1.
        total: number of trials, above 0.
        z: quantile of the standard normal distribution; the default gives 95 %.
    """
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def accuracy_rows(
    setting: str, guesses: Tensor, labels: Tensor, classes: int
) -> list[dict[str, Any]]:
    """Rows of a report: top1, and top5 if there are more than five classes.

    "chance" is the accuracy of always guessing the largest classes of test, and "balanced" the mean
    over the classes of the share that is right: with 95 % of one class, noise has 95 % top1.

    Args:
        setting: name of the setting.
        guesses: int64 [N, G], predicted classes, best first; -1 is none.
        labels: int64 [N].
        classes: number of classes.
    """
    hits = guesses == labels[:, None].to(guesses.device)
    tops = (1, TOP) if classes > TOP else (1,)
    rows: list[dict[str, Any]] = []
    for top in tops:
        correct, total = int(hits[:, :top].any(1).sum()), len(labels)
        low, high = wilson(correct, total)
        value = correct / total
        rows.append(
            {
                "setting": setting,
                "metric": f"top{top}",
                "value": value,
                "low": low,
                "high": high,
                "chance": share_of_largest(labels, top),
            }  # fmt: skip
        )
    rows[0]["balanced"] = balanced_accuracy(hits[:, 0].cpu(), labels.cpu())
    return rows


def share_of_largest(labels: Tensor, k: int = 1) -> float:
    """Share of the k largest classes: the accuracy of guessing them always.

    Args:
        labels: int64 [N].
        k: number of guesses.
    """
    counts = torch.bincount(labels.cpu())
    return float(counts.topk(min(k, len(counts))).values.sum()) / len(labels)


def balanced_accuracy(hits: Tensor, labels: Tensor) -> float:
    """Mean over the classes of test of the share of their images that are right.

    Args:
        hits: bool [N].
        labels: int64 [N].
    """
    counts = torch.bincount(labels).double()
    right = torch.bincount(labels[hits], minlength=len(counts)).double()
    return float((right[counts > 0] / counts[counts > 0]).mean())


def labelled_features(
    encoder: Encoder,
    train: Source,
    test: Source,
    features: tuple[Features, Features] | None,
    batch_size: int,
) -> tuple[Features, Features, tuple[str, ...], tuple[str, ...]]:
    """Features of train and test, with the labels of both numbered as in train.

    Args:
        encoder: the encoder.
        train: labelled images.
        test: labelled images of the same classes.
        features: features of train and test if they were computed before.
        batch_size: images in a forward pass.

    Returns:
        Features of train, features of test, names of the classes, and notes on unreadable images.

    Raises:
        DataError: no labels, one class only, classes in test that train lacks, or features that
            are not finite.
    """
    require_labels(train)
    test_labels = match_labels(train, test)  # fail before the features are computed
    train_features, test_features = features or (
        extract(encoder, train, batch_size=batch_size),
        extract(encoder, test, batch_size=batch_size),
    )
    for part, source in ((train_features, train), (test_features, test)):
        if not bool(torch.isfinite(part.values).all()):
            raise DataError(
                f"{encoder.name} gives features of {source.name!r} that are not finite (NaN or "
                "infinite). Check the encoder's weights, or use another checkpoint."
            )
    if train_features.labels is None or test_features.labels is None:  # pragma: no cover
        raise DataError("The features have no labels.")
    relabelled = torch.from_numpy(test_labels)[test_features.keys]
    test_features = Features(
        test_features.values, relabelled, test_features.skipped, test_features.keys
    )
    notes = (
        *describe_skipped(train.name, train_features.skipped),
        *describe_skipped(test.name, test_features.skipped),
    )
    return train_features, test_features, class_names(train), notes


def class_names(source: Source) -> tuple[str, ...]:
    """Names of the classes by label; the numbers if the source has no names."""
    labels = require_labels(source)
    return source.classes or tuple(str(i) for i in range(int(labels.max()) + 1))


def match_labels(train: Source, test: Source) -> np.ndarray:
    """Labels of test in the numbering of train; classes are matched by name.

    Args:
        train: labelled images.
        test: labelled images, of classes that train has.

    Returns:
        int64 [N].

    Raises:
        DataError: test has no labels, or a class that no image of train has.
    """
    names, labels = class_names(train), require_labels(train)
    if test.labels is None:
        require_labels(test)  # raises, with a message on what to do
    labels_of_test = np.asarray(test.labels)
    if not len(labels_of_test):
        raise DataError(f"{test.name!r} has no images.")
    test_names = test.classes or tuple(str(i) for i in range(int(labels_of_test.max()) + 1))
    test_names = tuple(clean_name(name) for name in test_names)
    train_index = {clean_name(names[int(i)]): int(i) for i in np.unique(labels)}
    missing = [
        test_names[int(i)]
        for i in np.unique(labels_of_test)
        if test_names[int(i)] not in train_index
    ]
    if missing:
        raise DataError(
            f"{test.name!r} has {len(missing)} class(es) without an image in {train.name!r}: "
            f"{first_names(missing)}. Train has: {first_names(list(train_index))}. Classes are "
            f"matched by name.{_hint(missing, list(train_index))}"
        )
    table = np.array([train_index.get(name, -1) for name in test_names], dtype=np.int64)
    return table[labels_of_test]


def _hint(missing: Sequence[str], known: Sequence[str]) -> str:
    """What a class may be called in train."""
    for name in missing:
        other = nearest_spelling(name, known)
        if other is not None:
            return f" {name!r} and {other!r} differ in spelling only: rename one of them."
    return ""


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """The first names in quotes, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(n) for n in names[:limit]) + more

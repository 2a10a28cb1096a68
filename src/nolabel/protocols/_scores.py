"""Shared by protocols: labels that fit together, accuracies with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nolabel.data.source import Source, require_labels
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.errors import DataError

Z_95 = 1.959963984540054  # of a normal distribution, 95 % lie within this many deviations
TOP = 5  # guesses that top5 allows


def wilson(right: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval for a share, in 0..1; holds near 0 and 1 too (Wilson, 1927).

    It covers the chance of which images were in the test set, not that of another training run.
    """
    return interval(right / total, total, z) if total > 0 else (0.0, 1.0)


def interval(share: float, total: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval for a share of `total` images, which need be no whole number."""
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def accuracy_rows(
    setting: str, guesses: Tensor, labels: Tensor, classes: int
) -> list[dict[str, Any]]:
    """One row for top1, and one for top5 when there are more than five classes.

    Args:
        setting: name of the rows.
        guesses: int64 [N, G], best first; -1 is no guess.
        labels: int64 [N].
        classes: number of classes.
    """
    hits = guesses == labels[:, None].to(guesses.device)
    tops = (1, TOP) if classes > TOP else (1,)
    rows = []
    for top in tops:
        right, total = int(hits[:, :top].any(1).sum()), len(labels)
        low, high = wilson(right, total)
        value = right / total
        rows.append(
            {"setting": setting, "metric": f"top{top}", "value": value, "low": low, "high": high}
        )
    return rows


def labelled_features(
    encoder: Encoder,
    train: Source,
    test: Source,
    features: tuple[Features, Features] | None,
    batch_size: int,
) -> tuple[Features, Features, tuple[str, ...], tuple[str, ...]]:
    """Features of both sets, test labels numbered as in train; names of classes, and notes.

    Raises:
        DataError: no labels, one class only, classes in test that train lacks, or features that
            are not finite.
    """
    require_labels(train)
    numbers = matching(train, test)  # before the features are computed
    found, judged = features or (
        extract(encoder, train, batch_size=batch_size),
        extract(encoder, test, batch_size=batch_size),
    )
    for part, source in ((found, train), (judged, test)):
        if not bool(torch.isfinite(part.values).all()):
            raise DataError(f"{encoder.name} gives features of {source.name!r} that are not finite")
    if found.labels is None or judged.labels is None:  # pragma: no cover - asked of both sources
        raise DataError("The features have no labels.")
    renumbered = torch.from_numpy(numbers)[judged.keys]
    judged = Features(judged.values, renumbered, judged.skipped, judged.keys)
    notes = []
    for part, source in ((found, train), (judged, test)):
        if part.skipped:
            path, reason = part.skipped[0]
            notes.append(
                f"{len(part.skipped)} image(s) of {source.name} could not be read and were left "
                f"out, first: {path}: {reason}"
            )
    return found, judged, class_names(train), tuple(notes)


def class_names(source: Source) -> tuple[str, ...]:
    """A name for every label; the number itself where the source has none."""
    labels = require_labels(source)
    return source.classes or tuple(str(i) for i in range(int(labels.max()) + 1))


def matching(train: Source, test: Source) -> np.ndarray:
    """Test's labels, int64 [N], in train's numbering. Classes are matched by name.

    Raises:
        DataError: test has no labels, or a class that no image of train has.
    """
    names, labels = class_names(train), require_labels(train)
    if test.labels is None:
        require_labels(test)  # says what to do
    own = np.asarray(test.labels)
    if not len(own):
        raise DataError(f"{test.name!r} has no images.")
    own_names = test.classes or tuple(str(i) for i in range(int(own.max()) + 1))
    trained = {names[int(i)]: int(i) for i in np.unique(labels)}
    foreign = [own_names[int(i)] for i in np.unique(own) if own_names[int(i)] not in trained]
    if foreign:
        raise DataError(
            f"{test.name!r} has {len(foreign)} class(es) without an image in {train.name!r}: "
            f"{_some(foreign)}. Train has: {_some(list(trained))}. Classes are matched by name."
        )
    table = np.array([trained.get(name, -1) for name in own_names], dtype=np.int64)
    return table[own]


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(n) for n in names[:most]) + more

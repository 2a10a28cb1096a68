"""Intervals by drawing the data again: for numbers that no formula covers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DRAWS = 2_000


def interval(
    rows: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a statistic of `rows` rows, as it is given their drawn numbers."""
    chance = np.random.default_rng(seed)
    found = np.stack([statistic(chance.integers(0, rows, rows)) for _ in range(draws)])
    low, high = np.nanpercentile(found, [2.5, 97.5], axis=0)
    return low, high


def difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over paired rows, float [N] both, and its 95 % interval."""
    gap = a - b
    low, high = interval(len(gap), lambda i: gap[i].mean(), seed)
    return float(gap.mean()), float(low), float(high)

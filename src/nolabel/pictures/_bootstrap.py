"""Bootstrap confidence intervals (percentile method), for statistics without a formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 2_000


def interval(
    rows: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0, draws: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval of a statistic of `rows` rows.

    Args:
        rows: number of rows N of the data.
        statistic: row indices int64 [N], drawn with replacement, to the statistic, float of any
            shape; NaN entries are ignored.
        seed: of the resampling.
        draws: number of resamples.

    Returns:
        The 2.5th and the 97.5th percentile, each of the statistic's shape.
    """
    rng = np.random.default_rng(seed)
    values = np.stack([statistic(rng.integers(0, rows, rows)) for _ in range(draws)])
    low, high = np.nanpercentile(values, [2.5, 97.5], axis=0)
    return low, high


def difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over paired rows, float [N] both, and its 95 % bootstrap interval."""
    gap = a - b
    low, high = interval(len(gap), lambda i: gap[i].mean(), seed)
    return float(gap.mean()), float(low), float(high)

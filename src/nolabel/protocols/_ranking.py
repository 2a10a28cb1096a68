"""Scores of ranked lists: average precision as the retrieval benchmarks define it, and means with
their uncertainty.

Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", 2018,
arXiv 1803.11285. With r_j the place (from 0) of the j-th relevant image (from 0) in a list from
which junk was taken out, and n relevant images,

    AP = 1/n sum over j of  1/2 [ j / r_j + (j + 1) / (r_j + 1) ]      (first term 1 where r_j is 0)

which is the area below the curve of precision over recall by trapezoids. Precision at k looks at
the first min(k, place of the last relevant image) places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLES = 1000  # of the bootstrap


def places(relevant: np.ndarray, junk: np.ndarray | None = None) -> np.ndarray:
    """Places from 0 of the relevant images, ascending, when junk is taken out of the list.

    Args:
        relevant: bool [N] along the ranked list, best first.
        junk: bool [N] likewise; None has none.
    """
    where = np.flatnonzero(relevant)
    return where if junk is None else where - np.cumsum(junk)[where]


def average_precision(found: np.ndarray) -> float:
    """AP of the places of a query's relevant images, which must not be empty."""
    j = np.arange(len(found))
    before = np.where(found == 0, 1.0, j / np.maximum(found, 1))
    return float(np.mean((before + (j + 1) / (found + 1)) / 2))


def precision_at(found: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Precision at each k, float64 [len(ks)], of the places of a query's relevant images."""
    reach = np.minimum(found.max() + 1, ks)
    return np.array([(found < k).sum() / k for k in reach])


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of values [N] (queries, frames, objects), by drawing them anew.

    It covers the chance of which were in the test set, not that of another training run.
    """
    if len(values) < 2:
        return float(values.mean()), float(values.mean())
    draws = np.random.default_rng(seed).integers(0, len(values), (SAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def row(setting: str, metric: str, values: np.ndarray, **more: float) -> dict[str, object]:
    """One row of a report: the mean of values [N] with its interval."""
    low, high = bootstrap(values)
    mean = float(values.mean())
    return {"setting": setting, "metric": metric, "value": mean, "low": low, "high": high, **more}

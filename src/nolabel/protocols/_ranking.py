"""Average precision as the retrieval benchmarks define it, and bootstrap confidence intervals.

Radenovic et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", 2018,
arXiv 1803.11285. With r_j the rank (from 0) of the j-th relevant image (from 0) in a list without
junk images, and n relevant images,

    AP = 1/n sum over j of  1/2 [ j / r_j + (j + 1) / (r_j + 1) ]      (first term 1 if r_j is 0)

which is the area under the precision-recall curve by the trapezoidal rule. Precision at k is
that of the first min(k, rank of the last relevant image from 1) images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000  # of the bootstrap


def relevant_ranks(relevant: np.ndarray, junk: np.ndarray | None = None) -> np.ndarray:
    """Ranks of the relevant images in a list from which junk images are removed.

    Args:
        relevant: bool [N] in the order of the ranked list, best first.
        junk: bool [N] in the same order; None is no junk.

    Returns:
        int64 [R], ranks from 0, ascending.
    """
    positions = np.flatnonzero(relevant)
    return positions if junk is None else positions - np.cumsum(junk)[positions]


def average_precision(ranks: np.ndarray) -> float:
    """Average precision of a query.

    Args:
        ranks: int64 [R], ranks from 0 of its relevant images, ascending; at least one.
    """
    j = np.arange(len(ranks))
    left = np.where(ranks == 0, 1.0, j / np.maximum(ranks, 1))
    return float(np.mean((left + (j + 1) / (ranks + 1)) / 2))


def precision_at(ranks: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Precision of a query at each k.

    Args:
        ranks: int64 [R], ranks from 0 of its relevant images; at least one.
        ks: numbers of first images.

    Returns:
        float64 [len(ks)].
    """
    limits = np.minimum(ranks.max() + 1, ks)
    return np.array([(ranks < k).sum() / k for k in limits])


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap confidence interval (95 %, percentiles) of a mean.

    It covers the sampling of the test set, not the variance between training runs.

    Args:
        values: float [N], one for each query, frame or object.
        seed: seed of the resampling.
    """
    if len(values) < 2:
        return float(values.mean()), float(values.mean())
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def row(setting: str, metric: str, values: np.ndarray, **more: float) -> dict[str, object]:
    """A row of a report: a mean with its bootstrap confidence interval.

    Args:
        setting: name of the setting.
        metric: name of the metric.
        values: float [N], one for each query, frame or object.
        **more: further entries of the row.
    """
    low, high = bootstrap(values)
    mean = float(values.mean())
    return {"setting": setting, "metric": metric, "value": mean, "low": low, "high": high, **more}

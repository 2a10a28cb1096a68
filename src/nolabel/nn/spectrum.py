"""Effective rank of a spectrum."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_number(values: Tensor) -> float:
    """Effective rank (Roy and Vetterli, "The Effective Rank", 2007): exp of the entropy of shares.

    Args:
        values: float [K], at least 0, such as eigenvalues.

    Returns:
        in [1, K]: 1 if a single value is not 0, K if all are equal.
    """
    p = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))

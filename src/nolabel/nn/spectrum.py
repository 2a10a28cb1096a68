"""How many directions a spectrum uses."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_number(values: Tensor) -> float:
    """exp of the entropy of values [K], not negative, as shares of their sum: 1 if one of them is
    all, K if they are equal (Roy and Vetterli, "The Effective Rank", 2007)."""
    p = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))

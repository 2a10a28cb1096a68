"""Gaussian noise as a function of a seed and a position: the same on any device, in any batch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_HALF = 2**32


def gaussian_noise(
    seeds: npt.NDArray[np.int64], values: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers, by the hash of SplitMix64 and the transform of Box and Muller.

    Args:
        seeds: of n images, int [n].
        values: numbers for each.
        device: of the result.

    Returns:
        float32 [n, values].
    """
    pairs = torch.arange(1, (values + 1) // 2 + 1, device=device)
    first = _mix(torch.from_numpy(np.asarray(seeds, np.int64)).to(device))
    bits = _mix(first[:, None] + pairs * _signed(0x9E37_79B9_7F4A_7C15))
    high, low = _shifted(bits, 32), bits & (_HALF - 1)
    radius = ((high + 1).to(torch.float32) / _HALF).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = low.to(torch.float32).mul_(2 * math.pi / _HALF)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :values]


def _signed(constant: int) -> int:
    """An unsigned number of 64 bits as torch's int64 holds it."""
    return constant - 2**64 if constant >= 2**63 else constant


def _shifted(x: Tensor, bits: int) -> Tensor:
    """int64 shifted right as an unsigned number."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """`nolabel.nn.splitmix64.mix` of int64, whose products wrap as those of unsigned numbers."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58_476D_1CE4_E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D0_49BB_1331_11EB)
    return x ^ _shifted(x, 31)

"""Gaussian blur with reflected borders, as products of matrices."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# Planes up to this side are blurred by whole matrices, many at once; beyond, by blocks of a band.
_DENSE = 128
_BAND = 16  # rows of one block: 16 + 12 columns at the usual radius of 6


def gaussian(sigma: npt.NDArray[np.floating], radius: int) -> npt.NDArray[np.float32]:
    """Taps 0..radius of sampled Gaussians [n, radius + 1]; the whole kernel sums to one."""
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma[:, None]) ** 2)
    taps[taps < 1e-12] = 0  # in float32 they would be subnormal, which slows products tenfold
    return (taps / (2 * taps.sum(1, keepdims=True) - 1)).astype(np.float32)


def blur_matrices(
    sigma: npt.NDArray[np.floating], size: int, radius: int, device: torch.device
) -> Tensor:
    """Toeplitz matrices of the blur along one axis, float32 [n, size, size].

    Args:
        sigma: Standard deviations in pixels [n].
        size: Length of the axis.
        radius: Half width of the kernel, below `size`.
        device: Where the matrices lie.
    """
    taps = torch.from_numpy(gaussian(sigma, radius)).to(device)
    return (taps @ _basis(size, radius, device)).view(-1, size, size)


def blur(planes: Tensor, sigma: npt.NDArray[np.floating], radius: int) -> None:
    """Blurs each of float32 [n, 3, s, s] by its own sigma [n], in place, on the CPU.

    Where sigma is 0 nothing is done.
    """
    s, where = planes.shape[2], np.flatnonzero(sigma)
    if s <= _DENSE and len(where):
        for i, m in zip(where, blur_matrices(sigma[where], s, radius, planes.device), strict=True):
            rows = torch.mm(planes[i].view(3 * s, s), m.T).view(3, s, s)
            torch.bmm(m.expand(3, s, s), rows, out=planes[i])
        return
    for i in where:
        # Beyond 4.5 sigma the taps sum to less than a hundredth of a level.
        r = min(radius, math.ceil(4.5 * float(sigma[i])))
        _banded(planes[i], torch.from_numpy(gaussian(sigma[i : i + 1], r)[0]), planes[i])


def _banded(x: Tensor, half: Tensor, out: Tensor) -> None:
    """Blurs [3, s, s]: on each axis, products of one small band matrix with overlapping blocks.

    Block k of BAND outputs reads entries k * BAND .. (k + 1) * BAND + 2 r of the padded axis.
    """
    s, r = x.shape[2], len(half) - 1
    blocks, reach = -(-s // _BAND), _BAND + 2 * r
    past = blocks * _BAND - s  # outputs of the last block that nobody needs
    band = F.pad(half, (0, 1))[_distance(r)].expand(blocks, -1, -1)  # zero beyond r
    tall = F.pad(x, (0, 0, r, r + past), mode="reflect")  # [3, blocks * BAND + 2 r, s]
    lines = x.new_empty(3, blocks, _BAND, s)
    for c in range(3):
        rows = tall[c]
        rows = rows.as_strided((blocks, reach, s), (_BAND * s, s, 1), rows.storage_offset())
        torch.bmm(band, rows, out=lines[c])
    done = lines.view(3, -1, s)[:, :s]
    wide = x.new_empty(3, s, 2 * r + s + past)  # F.pad is slow along the last axis
    wide[:, :, r : r + s] = done
    wide[:, :, :r] = done[:, :, 1 : r + 1].flip(2)
    wide[:, :, r + s :] = done[:, :, s - 1 - r - past : s - 1].flip(2)
    wide = wide.view(3 * s, -1)
    columns = wide.as_strided((blocks, 3 * s, reach), (_BAND, wide.shape[1], 1))
    y = torch.bmm(columns, band.transpose(1, 2))  # [blocks, 3 s, BAND]
    y = y.permute(1, 0, 2)
    if past:
        out.copy_(y.reshape(3, s, -1)[..., :s])
    else:
        out.view(3 * s, blocks, _BAND).copy_(y)


@functools.lru_cache(maxsize=64)
def _distance(r: int) -> Tensor:
    """The tap of each entry of the band [BAND, BAND + 2 r]; r + 1 where there is none."""
    distance = (torch.arange(_BAND)[:, None] + r - torch.arange(_BAND + 2 * r)).abs()
    return distance.clamp(max=r + 1)


@functools.lru_cache(maxsize=16)
def _basis(s: int, r: int, device: torch.device) -> Tensor:
    """What each tap adds to the matrix, [r + 1, s * s]."""
    basis = torch.zeros(r + 1, s, s)
    i = torch.arange(s)
    for d in range(-r, r + 1):
        basis[abs(d)].index_put_((i, _reflect(i + d, s)), torch.ones(()), accumulate=True)
    return basis.view(r + 1, s * s).to(device)


def _reflect(i: Tensor, size: int) -> Tensor:
    """Indices mirrored into 0..size-1 without repeating the border."""
    i = i.abs()
    return torch.where(i >= size, 2 * (size - 1) - i, i)

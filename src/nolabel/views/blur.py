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
        sigma: standard deviations in pixels [n].
        size: length of the axis.
        radius: half width of the kernel, below `size`.
        device: where the matrices lie.
    """
    return _matrices(torch.from_numpy(gaussian(sigma, radius)).to(device), size)


def _matrices(taps: Tensor, size: int) -> Tensor:
    """[n, size, size] of the taps [n, radius + 1]."""
    return (taps @ _basis(size, taps.shape[1] - 1, taps.device)).view(-1, size, size)


def blur(planes: Tensor, sigmas: dict[int, float], taps: Tensor) -> None:
    """Blurs some of float32 [n, C, s, s], in place, on the CPU.

    Args:
        planes: the pictures.
        sigmas: place of a picture -> its standard deviation.
        taps: of every picture, as `gaussian` gives them, [n, radius + 1].
    """
    _, c, s, _ = planes.shape
    radius = taps.shape[1] - 1
    if s <= _DENSE or radius > _BAND:
        for i, m in zip(sigmas, _matrices(taps[list(sigmas)], s), strict=True):
            rows = torch.mm(planes[i].view(c * s, s), m.T).view(c, s, s)
            torch.bmm(m.expand(c, s, s), rows, out=planes[i])
        return
    for i, sigma in sigmas.items():
        # Beyond 4.5 sigma the taps sum to less than a hundredth of a level.
        r = min(radius, math.ceil(4.5 * sigma))
        _banded(planes[i], taps[i, : r + 1], planes[i])


def _banded(x: Tensor, half: Tensor, out: Tensor) -> None:
    """Blurs [C, s, s], s >= 3 BAND: on each axis, products of a small band matrix with blocks.

    A block of BAND outputs inside reads BAND + 2 r inputs, and blocks overlap in what they read.
    The first block and the last, which takes what is left, have the reflected border in theirs.
    """
    c, s, r = x.shape[0], x.shape[2], len(half) - 1
    n, reach = s // _BAND - 2, _BAND + 2 * r
    a, b = _BAND, _BAND * (n + 1)
    band = F.pad(half, (0, 1))[_distance(r)].expand(n, -1, -1)  # zero beyond r
    first = (half @ _edge(_BAND, r)).view(_BAND, _BAND + r)
    last = (half @ _edge(s - b, r)).view(s - b, s - b + r).flip(0, 1)
    lines = x.new_empty(c, s, s)
    for rows, done in zip(x, lines, strict=True):
        torch.mm(first, rows[: a + r], out=done[:a])
        start = rows.storage_offset() + (a - r) * s
        blocks = rows.as_strided((n, reach, s), (_BAND * s, s, 1), start)
        torch.bmm(band, blocks, out=done[a:b].view(n, _BAND, s))
        torch.mm(last, rows[b - r :], out=done[b:])
    lines, done = lines.view(c * s, s), out.view(c * s, s)
    torch.mm(lines[:, : a + r], first.T, out=done[:, :a])
    blocks = lines.as_strided((n, c * s, reach), (_BAND, s, 1), a - r)
    inside = torch.bmm(blocks, band.transpose(1, 2))  # [n, C s, BAND]
    done[:, a:b].unflatten(1, (n, _BAND)).copy_(inside.permute(1, 0, 2))
    torch.mm(lines[:, b - r :], last.T, out=done[:, b:])


@functools.lru_cache(maxsize=64)
def _distance(r: int) -> Tensor:
    """The tap of each entry of the band [BAND, BAND + 2 r]; r + 1 where there is none."""
    distance = (torch.arange(_BAND)[:, None] + r - torch.arange(_BAND + 2 * r)).abs()
    return distance.clamp(max=r + 1)


@functools.lru_cache(maxsize=64)
def _edge(rows: int, r: int) -> Tensor:
    """What each tap adds to the matrix of the first rows, [r + 1, rows * (rows + r)]."""
    basis = torch.zeros(r + 1, rows, rows + r)
    i = torch.arange(rows)
    for d in range(-r, r + 1):
        basis[abs(d)].index_put_((i, (i + d).abs()), torch.ones(()), accumulate=True)
    return basis.view(r + 1, -1)


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

"""Gaussian blur with reflected borders, as matrix products."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# Images up to this side are blurred by full matrices, larger ones by blocks of a band matrix.
_MAX_DENSE = 128
_BAND = 16  # outputs per block; a block reads 16 + 12 inputs at the usual radius of 6


def gaussian(sigma: npt.NDArray[np.floating], radius: int) -> npt.NDArray[np.float32]:
    """Taps of sampled Gaussians: float32 [n, radius + 1], from the centre outwards.

    The full symmetric kernel, 2 radius + 1 taps, sums to one.

    Args:
        sigma: standard deviations in pixels, float [n].
        radius: half width of the kernel.
    """
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma[:, None]) ** 2)
    taps[taps < 1e-12] = 0  # subnormal in float32, which makes products ten times slower
    return (taps / (2 * taps.sum(1, keepdims=True) - 1)).astype(np.float32)


def blur_matrices(
    sigma: npt.NDArray[np.floating], size: int, radius: int, device: torch.device
) -> Tensor:
    """Toeplitz matrices of the blur along one axis, float32 [n, size, size].

    Args:
        sigma: standard deviations in pixels, float [n].
        size: length of the axis.
        radius: half width of the kernel, below `size`.
        device: device of the result.
    """
    return _matrices(torch.from_numpy(gaussian(sigma, radius)).to(device), size)


def _matrices(taps: Tensor, size: int) -> Tensor:
    """Blur matrices float32 [n, size, size] from the taps [n, radius + 1]."""
    return (taps @ _basis(size, taps.shape[1] - 1, taps.device)).view(-1, size, size)


def blur(planes: Tensor, sigmas: dict[int, float], taps: Tensor) -> None:
    """Blurs some of n images, in place, on the CPU.

    Args:
        planes: float32 [n, C, s, s], changed in place.
        sigmas: index of each image to blur -> its standard deviation in pixels.
        taps: float32 [n, radius + 1], from `gaussian`, for all images.
    """
    _, c, s, _ = planes.shape
    radius = taps.shape[1] - 1
    if s <= _MAX_DENSE or radius > _BAND:
        for i, m in zip(sigmas, _matrices(taps[list(sigmas)], s), strict=True):
            rows = torch.mm(planes[i].view(c * s, s), m.T).view(c, s, s)
            torch.bmm(m.expand(c, s, s), rows, out=planes[i])
        return
    for i, sigma in sigmas.items():
        # The taps beyond 4.5 sigma contribute less than 0.01 of a grey level.
        r = min(radius, math.ceil(4.5 * sigma))
        _banded(planes[i], taps[i, : r + 1], planes[i])


def _banded(x: Tensor, half: Tensor, out: Tensor) -> None:
    """Blurs one image: on each axis, products of a small band matrix with overlapping blocks.

    An inner block of BAND outputs reads BAND + 2 r inputs. The first block, and the last one with
    the remaining rows, have matrices of their own that include the reflected border.

    Args:
        x: float32 [C, s, s], s >= 3 BAND.
        half: taps float32 [r + 1], from the centre outwards.
        out: result [C, s, s]; may be `x`.
    """
    c, s, r = x.shape[0], x.shape[2], len(half) - 1
    n, reach = s // _BAND - 2, _BAND + 2 * r
    a, b = _BAND, _BAND * (n + 1)
    band = F.pad(half, (0, 1))[_distance(r)].expand(n, -1, -1)  # zero beyond r
    first = (half @ _edge(_BAND, r)).view(_BAND, _BAND + r)
    last = (half @ _edge(s - b, r)).view(s - b, s - b + r).flip(0, 1)
    lines = x.new_empty(c, s, s)
    for rows, result in zip(x, lines, strict=True):
        torch.mm(first, rows[: a + r], out=result[:a])
        start = rows.storage_offset() + (a - r) * s
        blocks = rows.as_strided((n, reach, s), (_BAND * s, s, 1), start)
        torch.bmm(band, blocks, out=result[a:b].view(n, _BAND, s))
        torch.mm(last, rows[b - r :], out=result[b:])
    lines, result = lines.view(c * s, s), out.view(c * s, s)
    torch.mm(lines[:, : a + r], first.T, out=result[:, :a])
    blocks = lines.as_strided((n, c * s, reach), (_BAND, s, 1), a - r)
    inside = torch.bmm(blocks, band.transpose(1, 2))  # [n, C s, BAND]
    result[:, a:b].unflatten(1, (n, _BAND)).copy_(inside.permute(1, 0, 2))
    torch.mm(lines[:, b - r :], last.T, out=result[:, b:])


@functools.lru_cache(maxsize=64)
def _distance(r: int) -> Tensor:
    """Index of the tap at each entry of the band matrix, int64 [BAND, BAND + 2 r]; r + 1: none."""
    distance = (torch.arange(_BAND)[:, None] + r - torch.arange(_BAND + 2 * r)).abs()
    return distance.clamp(max=r + 1)


@functools.lru_cache(maxsize=64)
def _edge(rows: int, r: int) -> Tensor:
    """Contribution of each tap to the matrix of the first rows: [r + 1, rows * (rows + r)]."""
    basis = torch.zeros(r + 1, rows, rows + r)
    i = torch.arange(rows)
    for d in range(-r, r + 1):
        basis[abs(d)].index_put_((i, (i + d).abs()), torch.ones(()), accumulate=True)
    return basis.view(r + 1, -1)


@functools.lru_cache(maxsize=16)
def _basis(s: int, r: int, device: torch.device) -> Tensor:
    """Contribution of each tap to the full matrix: float32 [r + 1, s * s]."""
    basis = torch.zeros(r + 1, s, s)
    i = torch.arange(s)
    for d in range(-r, r + 1):
        basis[abs(d)].index_put_((i, _reflect(i + d, s)), torch.ones(()), accumulate=True)
    return basis.view(r + 1, s * s).to(device)


def _reflect(i: Tensor, size: int) -> Tensor:
    """Indices reflected into 0..size-1 without repeating the border pixel, int64."""
    i = i.abs()
    return torch.where(i >= size, 2 * (size - 1) - i, i)

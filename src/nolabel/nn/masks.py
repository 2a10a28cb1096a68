"""Which patches to hide."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nolabel import distributed
from nolabel.nn.keyed_random import KeyedRandom

TRIES = 10  # draws of a block before an image is given up


def block_masks(
    counts: np.ndarray,
    grid: tuple[int, int],
    *,
    smallest: int = 16,
    aspect: float = 0.3,
    exact: bool = False,
    random: KeyedRandom | None = None,
) -> Tensor:
    """Masks made of rectangles (BEiT, algorithm 1), for all images at once.

    A block's area is uniform in [smallest, what is still missing], its aspect ratio log-uniform in
    [aspect, 1 / aspect]. It is taken if it lies within the grid and adds between one patch and
    what is missing; after `TRIES` draws without success an image has fewer patches than asked.

    Args:
        counts: int [B], patches to hide in each image.
        grid: (h, w).
        smallest: least area of a block in patches.
        exact: fill up what the blocks left open with single patches, and cut nothing: every image
            has its count exactly.
        random: of as many rows; by default one image a row, and torch's next seed.

    Returns:
        bool [B, h * w], True = hidden.
    """
    random = random or KeyedRandom(len(counts))
    h, w = grid
    counts = np.minimum(np.asarray(counts, np.int64), h * w)
    masks = np.zeros((len(counts), h, w), bool)
    rows, columns = np.arange(h)[None, :, None], np.arange(w)[None, None, :]
    open_ = np.flatnonzero(counts > 0)
    tries = np.zeros(len(counts), np.int64)
    done = np.zeros(len(counts), np.int64)
    low, high = math.log(aspect), -math.log(aspect)
    while len(open_):
        missing = counts[open_] - done[open_]
        u = random(4, open_).T
        area = smallest + u[0] * (missing - smallest)
        ratio = np.exp(low + u[1] * (high - low))
        bh = np.rint(np.sqrt(np.maximum(area, 0) * ratio)).astype(np.int64)
        bw = np.rint(np.sqrt(np.maximum(area, 0) / ratio)).astype(np.int64)
        top = (u[2] * (h - bh + 1)).astype(np.int64)
        left = (u[3] * (w - bw + 1)).astype(np.int64)
        block = (
            (rows >= top[:, None, None]) & (rows < (top + bh)[:, None, None])
            & (columns >= left[:, None, None]) & (columns < (left + bw)[:, None, None])
        )  # fmt: skip
        added = (block & ~masks[open_]).sum((1, 2))
        good = (bh < h) & (bw < w) & (added > 0) & (added <= missing)
        taken = open_[good]
        masks[taken] |= block[good]
        done[taken] += added[good]
        tries[open_] += 1
        tries[taken] = 0
        open_ = open_[(done[open_] < counts[open_]) & (tries[open_] < TRIES)]
    flat = masks.reshape(len(counts), h * w)
    if exact:
        order = (random(h * w) + flat).argsort(1)  # patches that are free come first
        place = np.arange(h * w)[None] < (counts - done)[:, None]
        np.put_along_axis(flat, order, place | np.take_along_axis(flat, order, 1), 1)
    return torch.from_numpy(flat)


def random_masks(counts: np.ndarray, patches: int, random: KeyedRandom) -> Tensor:
    """bool [B, patches]: so many single patches of each image hidden at random."""
    order = random(patches).argsort(1).argsort(1)
    return torch.from_numpy(order < counts[:, None])


def mask_noise(n: int, patches: int, device: torch.device | None = None) -> Tensor:
    """Uniform noise [n, patches] in [0, 1) to sort patches by: this process's rows of what is drawn
    for the whole batch."""
    return distributed.draw_for_rank(lambda total: torch.rand(total, patches, device=device), n)


def unit_masks(noise: Tensor, units: tuple[int, int], ratio: float, scale: int = 1) -> Tensor:
    """Masks of square units (SimMIM): ceil(units * ratio) of them are hidden.

    Args:
        noise: [n, h * w]; the units of smallest noise are hidden (`mask_noise`).
        units: (h, w) of the grid of units.
        ratio: share to hide.
        scale: patches along a side of a unit.

    Returns:
        bool [n, h * scale * w * scale], True = hidden.
    """
    n, (h, w) = len(noise), units
    hidden = math.ceil(h * w * ratio)
    mask = torch.zeros(n, h * w, dtype=torch.bool, device=noise.device)
    mask.scatter_(1, noise.argsort(1)[:, :hidden], True)
    mask = mask.view(n, h, w).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return mask.flatten(1)

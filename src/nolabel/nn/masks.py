"""Random masks over patches."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nolabel import distributed
from nolabel.nn.keyed_random import KeyedRandom

TRIES = 10  # rejected blocks in a row after which an image keeps what it has


def block_masks(
    counts: np.ndarray,
    grid: tuple[int, int],
    *,
    smallest: int = 16,
    aspect: float = 0.3,
    exact: bool = False,
    random: KeyedRandom | None = None,
) -> Tensor:
    """Blockwise masks (BEiT, algorithm 1), for all images in parallel.

    A block's area is uniform in [smallest, patches still to mask], its aspect ratio log-uniform in
    [aspect, 1 / aspect]. It is accepted if it is inside the grid and adds at least one patch and at
    most those still to mask. After `TRIES` rejections in a row the image has fewer masked patches.

    Args:
        counts: int [B], patches to mask in each image.
        grid: (h, w).
        smallest: least area of a block, in patches.
        aspect: least aspect ratio of a block, in (0, 1].
        exact: add single patches until each image has exactly its count.
        random: a source of random numbers with B rows; by default a new one.

    Returns:
        bool [B, h * w] on the CPU, True = masked.
    """
    random = random or KeyedRandom(len(counts))
    h, w = grid
    counts = np.minimum(np.asarray(counts, np.int64), h * w)
    masks = np.zeros((len(counts), h, w), bool)
    rows, columns = np.arange(h)[None, :, None], np.arange(w)[None, None, :]
    unfinished = np.flatnonzero(counts > 0)
    tries = np.zeros(len(counts), np.int64)
    n_masked = np.zeros(len(counts), np.int64)
    low, high = math.log(aspect), -math.log(aspect)
    while len(unfinished):
        missing = counts[unfinished] - n_masked[unfinished]
        u = random(4, unfinished).T
        area = smallest + u[0] * (missing - smallest)
        ratio = np.exp(low + u[1] * (high - low))
        height = np.rint(np.sqrt(np.maximum(area, 0) * ratio)).astype(np.int64)
        width = np.rint(np.sqrt(np.maximum(area, 0) / ratio)).astype(np.int64)
        top = (u[2] * (h - height + 1)).astype(np.int64)
        left = (u[3] * (w - width + 1)).astype(np.int64)
        block = (
            (rows >= top[:, None, None]) & (rows < (top + height)[:, None, None])
            & (columns >= left[:, None, None]) & (columns < (left + width)[:, None, None])
        )  # fmt: skip
        added = (block & ~masks[unfinished]).sum((1, 2))
        accepted_now = (height < h) & (width < w) & (added > 0) & (added <= missing)
        accepted = unfinished[accepted_now]
        masks[accepted] |= block[accepted_now]
        n_masked[accepted] += added[accepted_now]
        tries[unfinished] += 1
        tries[accepted] = 0
        unfinished = unfinished[
            (n_masked[unfinished] < counts[unfinished]) & (tries[unfinished] < TRIES)
        ]
    flat = masks.reshape(len(counts), h * w)
    if exact:
        order = (random(h * w) + flat).argsort(1)  # unmasked patches come first
        fill = np.arange(h * w)[None] < (counts - n_masked)[:, None]
        np.put_along_axis(flat, order, fill | np.take_along_axis(flat, order, 1), 1)
    return torch.from_numpy(flat)


def spread_counts(
    share: float, ratio: tuple[float, float], patches: int, random: KeyedRandom
) -> np.ndarray:
    """How many patches to mask, with ratios spread evenly over the batch (DINOv2).

    Args:
        share: share of the images of all ranks that are masked, chosen at random.
        ratio: bounds (low, high) of the share of masked patches. It is divided into as many equal
            bins as there are masked images, and each of these has a ratio from another bin.
        patches: P.
        random: a source of random numbers with B rows.

    Returns:
        int64 [B], of this rank's images; 0 = not masked.
    """
    rng, chosen, (low, high) = random.global_generator(), int(random.total * share), ratio
    ratios = low + (high - low) * (np.arange(chosen) + rng.random(chosen)) / max(chosen, 1)
    counts = np.zeros(random.total, np.int64)
    counts[rng.permutation(random.total)[:chosen]] = ratios * patches
    return counts[random.rows]


def random_masks(counts: np.ndarray, patches: int, random: KeyedRandom) -> Tensor:
    """Masks of single patches.

    Args:
        counts: int [B], patches to mask in each image.
        patches: P.
        random: a source of random numbers with B rows.

    Returns:
        bool [B, P] on the CPU, True = masked.
    """
    order = random(patches).argsort(1).argsort(1)
    return torch.from_numpy(order < counts[:, None])


def mask_noise(n: int, patches: int, device: torch.device | None = None) -> Tensor:
    """Uniform noise in [0, 1) to sort patches by, the same for any number of ranks.

    Args:
        n: images of this rank.
        patches: P.
        device: on which it is drawn.

    Returns:
        float32 [n, P].
    """
    return distributed.draw_for_rank(lambda total: torch.rand(total, patches, device=device), n)


def unit_masks(noise: Tensor, units: tuple[int, int], ratio: float, scale: int = 1) -> Tensor:
    """Masks of square units (SimMIM, §3.2): ceil(units * ratio) of them are masked.

    Args:
        noise: [n, h * w]; the units of smallest noise are masked (`mask_noise`).
        units: (h, w) of the grid of units.
        ratio: share of units to mask, in [0, 1].
        scale: patches along the side of a unit.

    Returns:
        bool [n, h * scale * w * scale], True = masked.
    """
    n, (h, w) = len(noise), units
    hidden = math.ceil(h * w * ratio)
    mask = torch.zeros(n, h * w, dtype=torch.bool, device=noise.device)
    mask.scatter_(1, noise.argsort(1)[:, :hidden], True)
    mask = mask.view(n, h, w).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return mask.flatten(1)

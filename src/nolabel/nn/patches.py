"""Patches: from images and back, and random selections of them."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(x: Tensor, patch: int) -> Tensor:
    """Images [B, C, H, W] to patches [B, P, patch*patch*C], row by row.

    Args:
        x: any dtype; H and W are multiples of `patch`.
        patch: side in pixels. The values of a patch are in the order (row, column, channel).
    """
    b, c, height, width = x.shape
    h, w = height // patch, width // patch
    x = x.reshape(b, c, h, patch, w, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch * patch * c)


def unpatchify(p: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`.

    Args:
        p: [B, P, patch*patch*C].
        patch: side in pixels.
        grid: (h, w), P = h * w.

    Returns:
        [B, C, h*patch, w*patch].
    """
    b, (h, w) = len(p), grid
    x = p.reshape(b, h, w, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h * patch, w * patch)


def normalise_patches(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises each patch to zero mean and unit variance (MAE, §3).

    Args:
        p: float [B, P, values].

    Returns:
        normalised patches [B, P, values], mean and (unbiased) standard deviation [B, P, 1].
    """
    mean = p.mean(-1, keepdim=True)
    std = (p.var(-1, keepdim=True) + 1e-6).sqrt()
    return (p - mean) / std, mean, std


def keep_by_noise(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Random masking by sorting noise (MAE, §3).

    Args:
        noise: float [B, P]; the patches of smallest noise are kept.
        ratio: share of patches to remove, in [0, 1); max(int(P * (1 - ratio)), 1) are kept.

    Returns:
        keep int64 [B, kept]; restore int64 [B, P], which undoes the shuffle (kept patches first);
        mask float [B, P], 1 = removed.
    """
    p = noise.shape[1]
    kept = max(int(p * (1 - ratio)), 1)
    shuffle = noise.argsort(1)
    restore = shuffle.argsort(1)
    mask = torch.ones_like(noise)
    mask[:, :kept] = 0
    return shuffle[:, :kept], restore, mask.gather(1, restore)


def mass_mask(attention: Tensor, mass: float) -> Tensor:
    """The smallest set of patches with a share `mass` of the attention (DINO, figure 1).

    Args:
        attention: float [..., P], at least 0.
        mass: share, in [0, 1].

    Returns:
        bool [..., P].
    """
    share, order = attention.sort(-1)
    share = share / share.sum(-1, keepdim=True)
    kept = share.cumsum(-1) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept)

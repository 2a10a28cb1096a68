"""The filters of the first layer: what a network looks for in pixels.

A ViT's patch embedding has as many as it is wide, so its principal components are shown too
(Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, figure 7). The number is how smooth
they are: the correlation of neighbouring weights, 0 for the noise that networks start from.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.pca import principal
from nolabel.pictures.picture import Picture


def filters(encoder: Encoder, images: object = None, *, most: int = 64) -> Pictures:
    """Principal components of the first layer's filters, and the filters themselves.

    Args:
        encoder: one whose first layer is a convolution.
        images: not used.
        most: filters shown, those with the largest weights first.

    Raises:
        UsageError: the network has no convolution, or most is below 1.
    """
    if most < 1:
        raise UsageError(f"most must be at least 1, got {most}.")
    first = next((m for m in encoder.backbone.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise UsageError(f"{encoder.name!r} has no convolution whose filters could be shown.")
    w = first.weight.detach().float().cpu().numpy()  # [F, C, k, k]
    k = w.shape[-1]
    order = np.argsort(-np.square(w).sum((1, 2, 3)))[:most]
    # The components of the filters as points in the space of patches.
    flat = w.reshape(len(w), -1)
    scores, share = principal(flat.T, min(len(w), flat.shape[1], most))
    parts = scores.T.reshape(-1, *w.shape[1:])
    across = 8
    tiles = [_tile(f) for f in [*parts, *w[order]]]
    rows = [tiles[i : i + across] for i in range(0, len(parts), across)]
    rows += [tiles[i : i + across] for i in range(len(parts), len(tiles), across)]
    numbers = {"smoothness": smoothness(w), "explained_8": float(share[:8].sum())}
    caption = (
        f"First layer of {encoder.name}: {len(parts)} principal components of its {len(w)} filters "
        f"of {k} x {k} px, then the {len(order)} largest filters. Neighbouring weights correlate "
        f"by {numbers['smoothness']:.2f} (0 before training); eight components hold "
        f"{numbers['explained_8']:.0%}."
    )
    return Pictures(
        [Picture(name="filters", image=sheet(rows, side=48), caption=caption, numbers=numbers,
                 data={"filters": w, "components": parts})]
    )  # fmt: skip


def smoothness(w: np.ndarray) -> float:
    """Correlation of weights next to each other, over filters [F, C, k, k] and both directions;
    1 is constant, 0 is noise (and filters of one pixel)."""
    total = float(np.square(w).mean())
    if w.shape[-1] < 2 or not total:
        return 0.0
    pairs = (w[..., 1:, :] * w[..., :-1, :]).mean() + (w[..., 1:] * w[..., :-1]).mean()
    return float(pairs / 2 / total)


def _tile(f: np.ndarray) -> np.ndarray:
    """A filter [C, k, k] as colours: zero is grey; of other channels than three their mean."""
    f = f if len(f) == 3 else np.repeat(f.mean(0, keepdims=True), 3, 0)
    return ((f / max(np.abs(f).max(), 1e-12) * 0.5 + 0.5) * 255).astype(np.uint8).transpose(1, 2, 0)

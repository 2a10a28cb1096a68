"""The filters of the first convolution, and their principal components.

A ViT's patch embedding has as many filters as it has channels, so the principal components are
shown first (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv 2010.11929, figure 7).
The number is the correlation of neighbouring weights: about 0 at initialisation, higher for smooth
filters.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from torch import nn

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.pca import principal
from nolabel.pictures.picture import Picture


def filters(
    encoder: Encoder,
    images: object = None,
    *,
    most: Annotated[int, Help("filters shown, those with the largest weights first")] = 64,
) -> Pictures:
    """Principal components of the first layer's filters, and the filters themselves.

    Args:
        encoder: one whose first layer is a convolution.
        images: not used.

    Raises:
        UsageError: the network has no convolution, or most is below 1.
    """
    if most < 1:
        raise UsageError(f"most must be at least 1, got {most}.")
    first = next((m for m in encoder.backbone.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise UsageError(
            f"{encoder.name!r} has no convolution whose filters could be shown. Use a ViT, Swin, "
            "ConvNeXt or ResNet."
        )
    w = first.weight.detach().float().cpu().numpy()  # [F, C, k, k]
    k = w.shape[-1]
    order = np.argsort(-np.square(w).sum((1, 2, 3)))[:most]
    # Principal components of the filters, each a point in the space of input patches.
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
        f"of {k} x {k} px, then the {len(order)} largest filters. Correlation of neighbouring "
        f"weights {numbers['smoothness']:.2f} (about 0 before training; smooth filters are near "
        f"1); eight components explain {numbers['explained_8']:.0%} of the variance."
    )
    return Pictures(
        [Picture(name="filters", image=sheet(rows, side=48), caption=caption, numbers=numbers,
                 data={"filters": w, "components": parts})]
    )  # fmt: skip


def smoothness(w: np.ndarray) -> float:
    """Correlation of neighbouring weights of filters float [F, C, k, k], over both directions.

    1 for constant filters, about 0 for noise, 0 for filters of one pixel.
    """
    total = float(np.square(w).mean())
    if w.shape[-1] < 2 or not total:
        return 0.0
    pairs = (w[..., 1:, :] * w[..., :-1, :]).mean() + (w[..., 1:] * w[..., :-1]).mean()
    return float(pairs / 2 / total)


def _tile(f: np.ndarray) -> np.ndarray:
    """A filter float [C, k, k] as uint8 [k, k, 3]; zero is grey; unless C is 3, the mean over C."""
    f = f if len(f) == 3 else np.repeat(f.mean(0, keepdims=True), 3, 0)
    return ((f / max(np.abs(f).max(), 1e-12) * 0.5 + 0.5) * 255).astype(np.uint8).transpose(1, 2, 0)

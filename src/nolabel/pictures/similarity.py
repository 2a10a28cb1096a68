"""How alike every patch is to one that is pointed at, in the same image and in others."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.pictures._dense import ImagesOrSamples, dense, truth
from nolabel.pictures._tiles import Pictures, dots, enlarge, heat, sheet
from nolabel.pictures.attention import patch_at
from nolabel.pictures.picture import Picture


def similarity(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    point: tuple[float, float] | None = None,
    layer: int = -1,
    facet: str = "auto",
    stride: int = 0,
    bins: bool = False,
) -> Pictures:
    """The cosine of every patch with one patch of the first image, as heat.

    Args:
        encoder: any; ViTs by their keys.
        images: anything `Encoder.prepare` takes, or Samples.
        point: x and y in the first image, from 0 to 1; by default where the class token looks
            most, or the middle.
        layer: which layer; -1 is the last.
        facet: key, query, value or token; auto is key, or token of a network without keys.
        stride: pixels from patch to patch; 0 is the patch itself.
        bins: whether patches are compared with their neighbourhoods.

    Raises:
        UsageError: a point outside the image, or see `dense`.
    """
    d = dense(encoder, images, layer=layer, facet=facet, stride=stride, bins=bins)
    if point is None:
        at = patch_at((0.5, 0.5), d.grid)
        if d.saliency is not None:
            at = int(d.saliency[0].argmax())
    else:
        at = patch_at(point, d.grid)
    z = F.normalize(d.values, dim=-1)
    cosines = z @ z[0, at]
    rows = [
        [dots(d.pixels[0], d.centres[at : at + 1]) if i == 0 else enlarge(image), heat(one)]
        for i, (image, one) in enumerate(zip(d.pixels, d.map(cosines.numpy()), strict=True))
    ]
    x, y = d.centres[at]
    caption = (
        f"Cosine of the {d.facet}s of {encoder.name}, layer {layer}, with the patch at ({x:.0f}, "
        f"{y:.0f}) px of the first image"
    )
    numbers: dict[str, float] = {}
    parts = truth(images, "parts", d.pixels.shape[1])
    if parts is not None and len(parts) > 1:
        same = d.at(parts) == d.at(parts)[0, at]
        plain = F.normalize(d.by_colour().values, dim=-1)
        numbers = {"auroc": part_auroc(cosines, same), "auroc_colour":
                   part_auroc(plain @ plain[0, at], same)}  # fmt: skip
        caption += (
            f". It tells patches of the same part in the other images by an area under the ROC of "
            f"{numbers['auroc']:.2f} (colour alone {numbers['auroc_colour']:.2f}, chance 0.50)"
        )
    return Pictures(
        [Picture(name="similarity", image=sheet(rows, ("image", "similarity")),
                 caption=caption + ".", numbers=numbers,
                 data={"similarity": d.map(cosines.numpy()), "point": np.array([x, y])})]
    )  # fmt: skip


def part_auroc(cosines: Tensor, same: np.ndarray) -> float:
    """Area under the ROC of cosines [N, P] for what is the same part, bool [N, P], in all images
    but the first; 0.5 where there is nothing to tell apart."""
    found, right = torch.as_tensor(cosines)[1:].flatten().numpy(), same[1:].ravel()
    return float(roc_auc_score(right, found)) if 0 < right.sum() < len(right) else 0.5

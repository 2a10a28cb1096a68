"""Cosine similarity of every patch to a query patch, in the same image and in others."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.pictures._dense import ImagesOrSamples, dense, ground_truth
from nolabel.pictures._options import Bins, Facet, Help, Layer, Stride
from nolabel.pictures._tiles import Pictures, draw_points, heat, on_image, sheet, tile_shape
from nolabel.pictures.attention import patch_at
from nolabel.pictures.picture import Picture


def similarity(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    point: Annotated[
        tuple[float, float] | None,
        Help(
            "x and y of the query in the first image, from 0 to 1; default: the patch with the "
            "most attention of the class token, or the centre"
        ),
    ] = None,
    layer: Layer = -1,
    facet: Facet = "auto",
    stride: Stride = 0,
    bins: Bins = False,
) -> Pictures:
    """Heat maps of the cosine of every patch with one patch of the first image.

    Args:
        encoder: any with patch features.
        images: anything `Encoder.prepare` takes, or Samples.

    Raises:
        UsageError: the point is outside the image, or one of the errors of `dense`.
    """
    d = dense(encoder, images, layer=layer, facet=facet, stride=stride, bins=bins)
    if point is None:
        query = patch_at((0.5, 0.5), d.grid)
        if d.saliency is not None:
            query = int(d.saliency[0].argmax())
    else:
        query = patch_at(point, d.grid)
    z = F.normalize(d.values, dim=-1)
    cosines = z @ z[0, query]
    maps = d.map(cosines.numpy())
    shape = tile_shape(d.shown)
    tiles = list(d.shown)
    tiles[0] = draw_points(
        tiles[0], d.centres[query : query + 1], tile_shape(d.shown, 192), d.pixels.shape[1:3]
    )
    rows = [
        [tile, on_image(image, heat(m))]
        for tile, image, m in zip(tiles, d.shown, maps, strict=True)
    ]
    x, y = d.centres[query]
    caption = (
        f"Cosine similarity of every patch to that at ({x:.0f}, {y:.0f}) px of the first image, by "
        f"the {d.facet}s of {encoder.name}, layer {layer}; bright is similar"
    )
    numbers: dict[str, float] = {}
    parts = ground_truth(images, "parts", d.pixels.shape[1:3])
    if parts is not None and len(parts) > 1:
        same = d.at_centres(parts) == d.at_centres(parts)[0, query]
        colours = F.normalize(d.by_colour().values, dim=-1)
        numbers = {"auroc": part_auroc(cosines, same), "auroc_colour":
                   part_auroc(colours @ colours[0, query], same)}  # fmt: skip
        caption += (
            f". Area under the ROC curve for patches of the same part in the other images (1 is "
            f"perfect) {numbers['auroc']:.2f} (from colour instead of features "
            f"{numbers['auroc_colour']:.2f}, chance 0.50)"
        )
    return Pictures(
        [Picture(name="similarity", image=sheet(rows, ("image", "similarity"), shape),
                 caption=caption + ".", numbers=numbers,
                 data={"similarity": maps, "point": np.array([x, y])})]
    )  # fmt: skip


def part_auroc(cosines: Tensor, same: np.ndarray) -> float:
    """Area under the ROC curve of similarities for patches of the query's part.

    Args:
        cosines: float [N, P]; the first image, which has the query, is left out.
        same: whether a patch shows the same part, bool [N, P].

    Returns:
        From 0 to 1; 0.5 if all patches, or none, are of the part.
    """
    scores, labels = torch.as_tensor(cosines)[1:].flatten().numpy(), same[1:].ravel()
    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else 0.5

"""Object discovery by a normalised cut of the patches of an image (TokenCut).

Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut"
(TokenCut), 2022, arXiv 2202.11539. Graph: patches, joined where the cosine of their keys exceeds
tau. The generalised eigenvector of (D - E, D) with the second smallest eigenvalue is split at its
mean. The object is the side of the patch with the largest absolute value, and of this side the
component connected to that patch.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch.nn.functional as F
from scipy.linalg import eigh
from scipy.ndimage import label
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.pictures._dense import ImagesOrSamples, dense, ground_truth, mean_colours
from nolabel.pictures._options import Facet, Help, Layer, Stride
from nolabel.pictures._tiles import Pictures, heat, on_image, overlay_groups, sheet, tile_shape
from nolabel.pictures.picture import Picture
from nolabel.protocols.attention import ceiling, iou

JOINED, APART = 1.0, 1e-5  # edge weights above and below tau


def objects(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    tau: Annotated[float, Help("cosine above which two patches are joined")] = 0.2,
    layer: Layer = -1,
    facet: Facet = "auto",
    stride: Stride = 0,
) -> Pictures:
    """The eigenvector of each image, and the object that it separates.

    Args:
        encoder: any with patch features.
        images: anything `Encoder.prepare` takes, or Samples.

    Raises:
        UsageError: one of the errors of `dense`.
    """
    d = dense(encoder, images, layer=layer, facet=facet, stride=stride, salient=False)
    cuts = [normalised_cut(z, d.grid, tau) for z in d.values]
    rows = [
        [image, on_image(image, heat(vector)), overlay_groups(image, np.where(kept, 1, -1))]
        for image, (vector, kept) in zip(d.shown, cuts, strict=True)
    ]
    caption = (
        f"The object of each image by a normalised cut of the {d.facet}s of {encoder.name}, layer "
        f"{layer}; patches are joined above a cosine of {tau:g}"
    )
    numbers: dict[str, float] = {}
    masks = ground_truth(images, "mask", d.pixels.shape[1:3])
    if masks is not None:
        colours = mean_colours(d.pixels, d.grid)
        colours = colours - colours.mean(1, keepdim=True)
        areas = [d.areas(m) for m in masks]
        by_colour = [normalised_cut(z, d.grid, tau)[1] for z in colours]
        whole = np.ones(d.grid, dtype=bool)
        scores = {
            "iou": [iou(k, *a) for (_, k), a in zip(cuts, areas, strict=True)],
            "iou_colour": [iou(k, *a) for k, a in zip(by_colour, areas, strict=True)],
            "iou_whole": [iou(whole, *a) for a in areas],
            "iou_ceiling": [ceiling(*a) for a in areas],
        }
        numbers = {k: float(np.mean(v)) for k, v in scores.items()}
        caption += (
            f". IoU with the true mask (higher is better) {numbers['iou']:.1%} (from colour "
            f"instead of features {numbers['iou_colour']:.1%}, the whole image "
            f"{numbers['iou_whole']:.1%}, best possible on this grid {numbers['iou_ceiling']:.1%})"
        )
    data = {"eigenvector": np.stack([v for v, _ in cuts]), "object": np.stack([k for _, k in cuts])}
    image = sheet(rows, ("image", "eigenvector", "object"), tile_shape(d.shown))
    return Pictures(
        [Picture(name="objects", image=image,
                 caption=caption + ".", data=data, numbers=numbers)]
    )  # fmt: skip


def normalised_cut(
    z: Tensor, grid: tuple[int, int], tau: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised cut of one image.

    Args:
        z: descriptors, float [P, D].
        grid: (h, w), P = h * w.
        tau: cosine above which two patches are joined.

    Returns:
        The eigenvector, float64 [h, w], with the sign that makes the object positive, and the
        object, bool [h, w].
    """
    z = F.normalize(z.double(), dim=-1)
    weights = np.where((z @ z.T).numpy() > tau, JOINED, APART)
    degree = np.diag(weights.sum(1))
    _, vectors = eigh(degree - weights, degree, subset_by_index=[1, 1])
    vector = np.asarray(vectors)[:, 0]
    first = int(np.abs(vector).argmax())
    if vector[first] <= vector.mean():
        vector = -vector
    side = (vector > vector.mean()).reshape(grid)
    components, _ = label(side)
    return vector.reshape(grid), components == components.ravel()[first]

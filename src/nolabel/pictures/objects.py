"""The object of an image by a normalised cut of its patches.

Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut"
(TokenCut), 2022, arXiv 2202.11539: patches are joined where their keys' cosine exceeds tau; the
second smallest generalised eigenvector of (D - E, D) is split at its mean; the side of the patch
with the largest absolute value is the object, and of it the piece connected with that patch.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from scipy.linalg import eigh
from scipy.ndimage import label
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.pictures._dense import ImagesOrSamples, colours, dense, truth
from nolabel.pictures._tiles import Pictures, enlarge, heat, sheet, tinted
from nolabel.pictures.picture import Picture
from nolabel.protocols.attention import ceiling, iou

JOINED, APART = 1.0, 1e-5  # weights of edges


def objects(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    tau: float = 0.2,
    layer: int = -1,
    facet: str = "auto",
    stride: int = 0,
) -> Pictures:
    """The eigenvector that cuts each image in two, and the object.

    Args:
        encoder: any; ViTs by their keys.
        images: anything `Encoder.prepare` takes, or Samples.
        tau: cosine from which patches are joined.
        layer: which layer; -1 is the last.
        facet: key, query, value or token; auto is key, or token of a network without keys.
        stride: pixels from patch to patch; 0 is the patch itself.
    """
    d = dense(encoder, images, layer=layer, facet=facet, stride=stride, salient=False)
    cuts = [normalised_cut(z, d.grid, tau) for z in d.values]
    rows = [
        [image, heat(vector), tinted(image, np.where(kept, 1, -1))]
        for image, (vector, kept) in zip(d.pixels, cuts, strict=True)
    ]
    caption = (
        f"Normalised cut of the {d.facet}s of {encoder.name}, layer {layer}, joined from a cosine "
        f"of {tau:g}"
    )
    numbers: dict[str, float] = {}
    masks = truth(images, "mask", d.pixels.shape[1])
    if masks is not None:
        plain = colours(d.pixels, d.grid)
        plain = plain - plain.mean(1, keepdim=True)
        areas = [d.areas(m) for m in masks]
        by_colour = [normalised_cut(z, d.grid, tau)[1] for z in plain]
        whole = np.ones(d.grid, dtype=bool)
        scores = {
            "iou": [iou(k, *a) for (_, k), a in zip(cuts, areas, strict=True)],
            "iou_colour": [iou(k, *a) for k, a in zip(by_colour, areas, strict=True)],
            "iou_whole": [iou(whole, *a) for a in areas],
            "iou_ceiling": [ceiling(*a) for a in areas],
        }
        numbers = {k: float(np.mean(v)) for k, v in scores.items()}
        caption += (
            f". IoU with the true figures {numbers['iou']:.1%} (by colour "
            f"{numbers['iou_colour']:.1%}, the whole image {numbers['iou_whole']:.1%}, at most "
            f"{numbers['iou_ceiling']:.1%} on this grid)"
        )
    tiles = [[enlarge(tile) for tile in row] for row in rows]
    data = {"eigenvector": np.stack([v for v, _ in cuts]), "object": np.stack([k for _, k in cuts])}
    return Pictures(
        [Picture(name="objects", image=sheet(tiles, ("image", "eigenvector", "object")),
                 caption=caption + ".", data=data, numbers=numbers)]
    )  # fmt: skip


def normalised_cut(
    z: Tensor, grid: tuple[int, int], tau: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvector, float [h, w], and the object, bool [h, w], of descriptors [P, D].

    The eigenvector's sign is such that the object is positive.
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
    pieces, _ = label(side)
    return vector.reshape(grid), pieces == pieces.ravel()[first]

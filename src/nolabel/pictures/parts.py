"""What several images have in common, and its parts: clusters of patches over all of them.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814, sections 4.1
and 4.2: k-means on unit descriptors for k = 1, 2, ... until one more takes less than a fortieth off
the error; a cluster is foreground if, in three quarters of the images that have it, the class token
looks at it more than elsewhere; the foreground is clustered again into parts.

Differs from the original: "more than elsewhere" is above the image's mean saliency (there: a
threshold for one checkpoint); no GrabCut and no random field smooth the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import Dense, ImagesOrSamples, colours, dense, truth
from nolabel.pictures._tiles import Pictures, enlarge, sheet, tinted
from nolabel.pictures.picture import Picture
from nolabel.protocols.attention import ceiling, iou

MOST, ELBOW, VOTES = 14, 0.975, 0.75  # clusters; share of the error that may stay; of the images
FITTED = 20_000  # descriptors that k-means sees at most; all are assigned


def parts(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    number: int = 4,
    layer: int = -1,
    facet: str = "auto",
    stride: int = 0,
    seed: int = 0,
) -> Pictures:
    """The common foreground of some images, and its parts in the same colours everywhere.

    Args:
        encoder: a ViT with a class token, whose attention tells what is foreground.
        images: two or more of what `Encoder.prepare` takes, or Samples.
        number: of parts.
        layer: which layer; -1 is the last.
        facet: key, query, value or token; auto is key.
        stride: pixels from patch to patch; 0 is the patch itself.
        seed: of k-means.

    Raises:
        UsageError: fewer than two images or parts, or an encoder without a class token.
    """
    d, saliency = described(encoder, images, layer=layer, facet=facet, stride=stride)
    if len(d.values) < 2 or number < 2:
        raise UsageError(f"Give two or more images and parts, got {len(d.values)} and {number}.")
    front, groups = segment(d.values, saliency, number, seed)
    rows = [
        [enlarge(image), enlarge(tinted(image, f)), enlarge(tinted(image, g))]
        for image, f, g in zip(d.pixels, d.map(np.where(front, 1, -1)), d.map(groups), strict=True)
    ]
    caption = (
        f"Foreground and {number} parts that the {d.facet}s of {encoder.name}, layer {layer}, have "
        f"in common in {len(rows)} images"
    )
    numbers: dict[str, float] = {}
    masks, own = (truth(images, what, d.pixels.shape[1]) for what in ("mask", "parts"))
    if masks is not None and own is not None:
        by_colour = segment(only_colours(d), saliency, number, seed)
        looked = (saliency > saliency.mean(1, keepdim=True)).numpy()
        numbers = {
            "iou": overlap(d, front, masks), "iou_colour": overlap(d, by_colour[0], masks),
            "iou_saliency": overlap(d, looked, masks),
            "iou_ceiling": float(np.mean([ceiling(*d.areas(m)) for m in masks])),
            **agreement(groups, d.at(own)),
            **{f"{k}_colour": v for k, v in agreement(by_colour[1], d.at(own)).items()},
        }  # fmt: skip
        caption += (
            f". IoU of the foreground {numbers['iou']:.1%} (by colour {numbers['iou_colour']:.1%}, "
            f"by saliency alone {numbers['iou_saliency']:.1%}, at most "
            f"{numbers['iou_ceiling']:.1%}); parts agree with the true ones by an NMI of "
            f"{numbers['nmi']:.2f} (colour {numbers['nmi_colour']:.2f}) and an ARI of "
            f"{numbers['ari']:.2f} ({numbers['ari_colour']:.2f})"
        )
    return Pictures(
        [Picture(name="parts", image=sheet(rows, ("image", "foreground", "parts")),
                 caption=caption + ".", numbers=numbers,
                 data={"foreground": d.map(front), "parts": d.map(groups)})]
    )  # fmt: skip


def described(encoder: Encoder, images: ImagesOrSamples, **how: Any) -> tuple[Dense, Tensor]:
    """Descriptors of images (`dense`), and their saliency.

    Raises:
        UsageError: an encoder without a class token.
    """
    d = dense(encoder, images, **how)
    if d.saliency is None:
        raise UsageError(
            f"{encoder.name!r} has no class token whose attention tells the foreground. Use a ViT."
        )
    return d, d.saliency


def only_colours(d: Dense) -> Tensor:
    """The baseline: the mean colour about each patch [N, P, 4], and a one so that black counts."""
    plain = colours(d.pixels, d.grid)
    return torch.cat([plain, plain.new_ones(*plain.shape[:2], 1)], -1)


def segment(
    values: Tensor, saliency: Tensor, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Foreground bool [N, P] and parts int [N, P], -1 for the ground, of descriptors [N, P, D]."""
    front, flat = common(values, saliency, seed)
    parts = np.full(front.shape, -1)
    if front.sum() >= count:
        model = KMeans(count, n_init=10, random_state=seed).fit(_some(flat[front.ravel()], seed))
        parts[front] = model.predict(flat[front.ravel()])
    return front, parts


def common(values: Tensor, saliency: Tensor, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Foreground bool [N, P] of descriptors [N, P, D], and these as unit rows [N * P, D]."""
    z = F.normalize(values.double(), dim=-1)
    flat = z.flatten(0, 1).numpy()
    groups = clusters(flat, seed).reshape(z.shape[:2])
    return np.isin(groups, foreground(groups, saliency.numpy())), flat


def clusters(z: np.ndarray, seed: int = 0) -> np.ndarray:
    """k-means of rows [M, D], up to the first cluster that hardly helped: int [M]."""
    some = _some(z, seed)
    labels, before = np.zeros(len(z), dtype=int), np.inf
    for k in range(1, min(MOST, len(some)) + 1):
        model = KMeans(k, n_init=10, random_state=seed).fit(some)
        labels = model.predict(z)
        error = float(np.square(z - model.cluster_centers_[labels]).sum())
        if error > ELBOW * before or error < 1e-9:
            break
        before = error
    return labels


def foreground(groups: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Which of the groups int [N, P] are looked at more than an image's mean, by `VOTES` of the
    images that have them; saliency is float [N, P]."""
    chosen = []
    for g in np.unique(groups):
        inside = groups == g
        having = inside.any(1)
        mean = (saliency * inside).sum(1)[having] / inside.sum(1)[having]
        if (mean > saliency.mean(1)[having]).mean() >= VOTES:
            chosen.append(g)
    return np.array(chosen, dtype=int)


def overlap(d: Dense, front: np.ndarray, masks: np.ndarray) -> float:
    """Mean IoU of foregrounds bool [N, P] with masks [N, H, W]."""
    return float(np.mean([iou(f, *d.areas(m)) for f, m in zip(d.map(front), masks, strict=True)]))


def agreement(groups: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """NMI and ARI of groups with true parts, int [N, P] both, on the patches of true figures."""
    figure = own > 0
    return {
        "nmi": float(normalized_mutual_info_score(own[figure], groups[figure])),
        "ari": float(adjusted_rand_score(own[figure], groups[figure])),
    }


def _some(z: np.ndarray, seed: int) -> np.ndarray:
    if len(z) <= FITTED:
        return z
    return z[np.random.default_rng(seed).choice(len(z), FITTED, replace=False)]

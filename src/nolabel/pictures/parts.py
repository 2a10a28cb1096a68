"""Part co-segmentation: the common foreground of several images, clustered into parts.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814, sections 4.1
and 4.2: k-means on unit descriptors of all images for k = 1, 2, ... until one more cluster reduces
the error by less than 2.5 %. A cluster is foreground if it is salient in three quarters of all
images; an image without the cluster counts as not salient, so that a cluster of a single image is
not common. The foreground is clustered again into parts.

Differs from the original: salient means above the image's mean saliency (there: above a threshold
chosen for one checkpoint); the result is not smoothed by GrabCut or a conditional random field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import Dense, ImagesOrSamples, dense, ground_truth, mean_colours
from nolabel.pictures._options import Facet, Help, Layer, Stride
from nolabel.pictures._tiles import Pictures, overlay_groups, sheet, tile_shape
from nolabel.pictures.picture import Picture
from nolabel.protocols.attention import ceiling, iou

MAX_CLUSTERS = 14
ELBOW = 0.975  # stop when the error is still above this share of that with one cluster less
VOTES = 0.75  # share of all images in which a foreground cluster is salient
FITTED = 20_000  # descriptors that k-means is fitted on, at most; all are assigned


class _DenseOptions(TypedDict):
    layer: int
    facet: str
    stride: int


def parts(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    number: Annotated[int, Help("number of parts")] = 4,
    layer: Layer = -1,
    facet: Facet = "auto",
    stride: Stride = 0,
    seed: Annotated[int, Help("seed of k-means")] = 0,
) -> Pictures:
    """The common foreground of the images, and its parts; a part has one colour in all images.

    Args:
        encoder: a ViT with a class token, whose attention indicates the foreground.
        images: two or more of what `Encoder.prepare` takes, or Samples.

    Raises:
        UsageError: fewer than two images or parts, or an encoder without a class token.
    """
    d, saliency = dense_with_saliency(encoder, images, layer=layer, facet=facet, stride=stride)
    if len(d.values) < 2 or number < 2:
        raise UsageError(f"Give two or more images and parts, got {len(d.values)} and {number}.")
    front, groups = segment(d.values, saliency, number, seed)
    rows = [
        [image, overlay_groups(image, f), overlay_groups(image, g)]
        for image, f, g in zip(d.shown, d.map(np.where(front, 1, -1)), d.map(groups), strict=True)
    ]
    caption = (
        f"The foreground that {len(rows)} images have in common, and its {number} parts, by the "
        f"{d.facet}s of {encoder.name}, layer {layer}; a colour should mark the same part in all "
        "images"
    )
    common = len(common_parts(list(groups)))
    caption += f". {common} of the {number} parts are in every image"
    numbers: dict[str, float] = {"common_parts": float(common)}
    masks, true_parts = (
        ground_truth(images, what, d.pixels.shape[1:3]) for what in ("mask", "parts")
    )
    if masks is not None and true_parts is not None:
        by_colour = segment(colour_descriptors(d), saliency, number, seed)
        salient = (saliency > saliency.mean(1, keepdim=True)).numpy()
        numbers |= {
            "iou": overlap(d, front, masks), "iou_colour": overlap(d, by_colour[0], masks),
            "iou_saliency": overlap(d, salient, masks),
            "iou_ceiling": float(np.mean([ceiling(*d.areas(m)) for m in masks])),
            **agreement(groups, d.at_centres(true_parts)),
            **{f"{k}_colour": v
               for k, v in agreement(by_colour[1], d.at_centres(true_parts)).items()},
        }  # fmt: skip
        caption += (
            f". IoU of the foreground with the true mask (higher is better) {numbers['iou']:.1%} "
            f"(from colour instead of features {numbers['iou_colour']:.1%}, from saliency alone "
            f"{numbers['iou_saliency']:.1%}, best possible on this grid "
            f"{numbers['iou_ceiling']:.1%}). Agreement with the true parts (1 is perfect, 0 is "
            f"chance): NMI {numbers['nmi']:.2f} (colour {numbers['nmi_colour']:.2f}), ARI "
            f"{numbers['ari']:.2f} (colour {numbers['ari_colour']:.2f})"
        )
    image = sheet(rows, ("image", "foreground", "parts"), tile_shape(d.shown))
    return Pictures(
        [Picture(name="parts", image=image,
                 caption=caption + ".", numbers=numbers,
                 data={"foreground": d.map(front), "parts": d.map(groups)})]
    )  # fmt: skip


def dense_with_saliency(
    encoder: Encoder, images: ImagesOrSamples, **options: Unpack[_DenseOptions]
) -> tuple[Dense, Tensor]:
    """Descriptors of images (`dense`), and their saliency, float32 [N, P].

    Raises:
        UsageError: an encoder without a class token.
    """
    d = dense(encoder, images, **options)
    if d.saliency is None:
        raise UsageError(
            f"{encoder.name!r} has no class token, whose attention indicates the foreground. Use "
            "a ViT with a class token."
        )
    return d, d.saliency


def colour_descriptors(d: Dense) -> Tensor:
    """The baseline without a network: mean colour of each patch and a constant 1, float [N, P, 4].

    The constant gives black a direction after normalisation.
    """
    colours = mean_colours(d.pixels, d.grid)
    return torch.cat([colours, colours.new_ones(*colours.shape[:2], 1)], -1)


def segment(
    values: Tensor, saliency: Tensor, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Foreground and parts of images.

    Args:
        values: descriptors, float [N, P, D].
        saliency: float [N, P].
        count: number of parts.
        seed: of k-means.

    Returns:
        Foreground, bool [N, P], and parts, int [N, P], -1 for the background.
    """
    front, flat = common_foreground(values, saliency, seed)
    parts = np.full(front.shape, -1)
    if front.sum() >= count:
        model = KMeans(count, n_init=10, random_state=seed).fit(_subset(flat[front.ravel()], seed))
        parts[front] = model.predict(flat[front.ravel()])
    return front, parts


def common_foreground(
    values: Tensor, saliency: Tensor, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The common foreground, bool [N, P], and the descriptors as unit rows, float64 [N * P, D].

    Args:
        values: descriptors, float [N, P, D].
        saliency: float [N, P].
        seed: of k-means.
    """
    z = F.normalize(values.double(), dim=-1)
    flat = z.flatten(0, 1).numpy()
    groups = cluster_until_elbow(flat, seed).reshape(z.shape[:2])
    return np.isin(groups, foreground_clusters(list(groups), list(saliency.numpy()))), flat


def cluster_until_elbow(z: np.ndarray, seed: int = 0) -> np.ndarray:
    """k-means with the number of clusters chosen by the elbow of the error.

    Args:
        z: float [M, D].
        seed: of k-means.

    Returns:
        The cluster of each row, int [M].
    """
    subset = _subset(z, seed)
    labels, before = np.zeros(len(z), dtype=int), np.inf
    for k in range(1, min(MAX_CLUSTERS, len(subset)) + 1):
        model = KMeans(k, n_init=10, random_state=seed).fit(subset)
        labels = model.predict(z)
        error = float(np.square(z - model.cluster_centers_[labels]).sum())
        if error > ELBOW * before or error < 1e-9:
            break
        before = error
    return labels


def foreground_clusters(
    groups: Sequence[np.ndarray],
    saliency: Sequence[np.ndarray],
    thresholds: Sequence[float] | None = None,
    votes: float = VOTES,
) -> np.ndarray:
    """The clusters that are salient in a share of all images; absent means not salient.

    Args:
        groups: cluster of each patch of the N images, int [P] each; P may differ.
        saliency: float [P] each.
        thresholds: above which an image's mean saliency of a cluster is salient; None: the mean
            saliency of each image.
        votes: the share of the images.

    Returns:
        int [<= clusters], ascending.
    """
    if thresholds is None:
        thresholds = [float(s.mean()) for s in saliency]
    counts: dict[int, int] = {}
    for g, s, threshold in zip(groups, saliency, thresholds, strict=True):
        for cluster in np.unique(g):
            voted = float(s[g == cluster].mean()) > threshold
            counts[int(cluster)] = counts.get(int(cluster), 0) + voted
    return np.array(sorted(c for c, n in counts.items() if n >= votes * len(groups)), dtype=int)


def common_parts(groups: Sequence[np.ndarray]) -> np.ndarray:
    """The parts, int ascending, that every image has.

    Args:
        groups: part of each patch of each image, int [P] each; -1 is the background.
    """
    found = set.intersection(*(set(np.unique(g).tolist()) for g in groups))
    return np.array(sorted(found - {-1}), dtype=int)


def overlap(d: Dense, front: np.ndarray, masks: np.ndarray) -> float:
    """Mean IoU of foregrounds bool [N, P] with masks uint8 [N, H, W]."""
    return float(np.mean([iou(f, *d.areas(m)) for f, m in zip(d.map(front), masks, strict=True)]))


def agreement(groups: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """NMI and ARI of parts with true parts, int [N, P] both, on the true object's patches."""
    figure = truth > 0
    return {
        "nmi": float(normalized_mutual_info_score(truth[figure], groups[figure])),
        "ari": float(adjusted_rand_score(truth[figure], groups[figure])),
    }


def _subset(z: np.ndarray, seed: int) -> np.ndarray:
    """At most `FITTED` random rows of [M, D]."""
    if len(z) <= FITTED:
        return z
    return z[np.random.default_rng(seed).choice(len(z), FITTED, replace=False)]

"""Dense correspondences between two images, without training for them.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814, section 4.3:
log-binned keys; mutual nearest neighbours ("best buddies") among all patches, of which those with
two salient ends stay; of these, the most salient pair of each of k clusters of pairs, so that the
points are spread over the object.

Differs from the original: its code keeps some additional pairs, of which only one patch is salient.

Measured, where keypoints are known, by PCK at 0.1: the percentage of correct keypoints. A keypoint
is correct if the best match of its patch lies within 0.1 times the longer side of the object's
bounding box from the true keypoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import Dense, ImagesOrSamples, dense, samples_of
from nolabel.pictures._options import Bins, Facet, Help, Stride
from nolabel.pictures._tiles import Pictures, draw_points, sheet, tile_shape
from nolabel.pictures.picture import Picture
from nolabel.types import Sample

ALPHA = 0.1  # of PCK


def correspond(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: Annotated[
        int, Help("which layer; -1 is the last (the paper takes the ninth of twelve)")
    ] = -1,
    facet: Facet = "auto",
    stride: Stride = 0,
    bins: Bins = True,
    points: Annotated[int, Help("matches shown for each pair, at most")] = 10,
    least: Annotated[float, Help("smallest saliency of both patches, from 0 to 1")] = 0.05,
    seed: Annotated[int, Help("seed of the k-means that spreads the matches shown")] = 0,
) -> Pictures:
    """Matching points of pairs of images: the first and the second, the third and the fourth, ...

    Args:
        encoder: any with patch features.
        images: an even number of what `Encoder.prepare` takes, or Samples.

    Raises:
        UsageError: an odd number of images, or one of the errors of `dense`.
    """
    d = dense(encoder, images, layer=layer, facet=facet, stride=stride, bins=bins)
    count = len(d.values)
    if count < 2 or count % 2:
        raise UsageError(f"Correspondences need pairs of images, got {count}.")
    z = F.normalize(d.values, dim=-1)
    saliency = d.saliency if d.saliency is not None else torch.ones(z.shape[:2])
    rows, data, tile = [], {}, tile_shape(d.shown, 192)
    for i in range(0, count, 2):
        a, b, cos = best_buddies(z[i], z[i + 1], saliency[i] > least, saliency[i + 1] > least)
        pairs, weight = torch.cat([z[i][a], z[i + 1][b]], 1), saliency[i][a] + saliency[i + 1][b]
        index = spread_pairs(pairs, weight, points, seed)
        xy = [d.centres[side[index].numpy()] for side in (a, b)]
        rows.append([draw_points(d.shown[i + k], xy[k], tile, d.pixels.shape[1:3]) for k in (0, 1)])
        data |= {f"points_{i}": xy[0], f"points_{i + 1}": xy[1], f"cosine_{i}": cos[index].numpy()}
    caption = (
        f"Mutual nearest neighbours among the patches of two images, by the {d.facet}s of "
        f"{encoder.name}, layer {layer}; equal numbers should mark the same part"
    )
    numbers: dict[str, float] = {}
    samples, truth = samples_of(images), keypoints(images)
    if samples is not None and truth is not None:
        numbers = {
            "pck": pck(d, samples, truth), "pck_colour": pck(d.by_colour(), samples, truth),
            "pck_same_place": pck(None, samples, truth),
            "pck_ceiling": pck(d, samples, truth, oracle=True),
        }  # fmt: skip
        caption += (
            f". PCK, the share of keypoints found within {ALPHA:g} of the object's box (higher is "
            f"better): {numbers['pck']:.0%} (by colour {numbers['pck_colour']:.0%}, by the same "
            f"position {numbers['pck_same_place']:.0%}, best possible on this grid "
            f"{numbers['pck_ceiling']:.0%})"
        )
    image = sheet(rows, ("one", "other"), tile)
    return Pictures(
        [Picture(name="correspond", image=image, caption=caption + ".", data=data, numbers=numbers)]
    )


def best_buddies(
    a: Tensor, b: Tensor, in_a: Tensor | None = None, in_b: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mutual nearest neighbours among all rows; of these, the pairs whose two ends may match.

    A row that may not match still competes: if it is the nearest of a row, that row has no pair.

    Args:
        a: unit vectors, float [P, D].
        b: unit vectors, float [Q, D].
        in_a: which rows of a may match, bool [P]; None: all.
        in_b: which rows of b may match, bool [Q]; None: all.

    Returns:
        Row indices in a and in b, int64 [M] each, and their cosines, float [M], highest first.
    """
    cos = a @ b.T
    value, best_b = cos.max(1)
    mutual = cos.argmax(0)[best_b] == torch.arange(len(a))
    if in_a is not None:
        mutual &= in_a
    if in_b is not None:
        mutual &= in_b[best_b]
    order = value[mutual].argsort(descending=True)
    rows = mutual.nonzero()[:, 0][order]
    return rows, best_b[rows], value[rows]


def spread_pairs(pairs: Tensor, weight: Tensor, count: int, seed: int) -> Tensor:
    """Picks well spread pairs: that of largest weight in each of `count` k-means clusters.

    Args:
        pairs: descriptors of pairs, float [M, E].
        weight: float [M].
        count: number of clusters.
        seed: of k-means.

    Returns:
        Row indices, int64 [<= count], ascending.
    """
    if len(pairs) <= count:
        return torch.arange(len(pairs))
    groups = KMeans(count, n_init=3, random_state=seed).fit_predict(pairs.double().numpy())
    chosen = []
    for g in range(count):
        members = np.flatnonzero(groups == g)
        if len(members):
            chosen.append(members[weight[members].argmax()])
    return torch.from_numpy(np.sort(np.array(chosen, dtype=np.int64)))


def keypoints(images: ImagesOrSamples) -> list[np.ndarray] | None:
    """Keypoints of Samples, float [K, 3] each (x, y, visible); None if an image has none, or K
    differs."""
    samples = samples_of(images)
    points = [s.keypoints for s in samples or () if s.keypoints is not None]
    complete = samples is not None and len(points) == len(samples)
    return points if complete and len({len(p) for p in points}) == 1 else None


def pck(
    d: Dense | None, images: Sequence[Sample], truth: list[np.ndarray], *, oracle: bool = False
) -> float:
    """PCK over the pairs; NaN if no pair has a keypoint in common.

    Args:
        d: descriptors; None predicts the same position in the other image.
        images: their Samples.
        truth: keypoints of each image, float [K, 3].
        oracle: whether to predict the patch nearest to the true keypoint, which gives the best PCK
            that is possible on this grid.
    """
    hits = []
    for i in range(0, len(images), 2):
        both = (truth[i][:, 2] > 0) & (truth[i + 1][:, 2] > 0)
        first, second = truth[i][both, :2], truth[i + 1][both, :2]
        if not len(first):
            continue
        predicted = first
        if d is not None:
            query = second if oracle else first
            patch = np.square(d.centres[None] - query[:, None]).sum(-1).argmin(1)
            if not oracle:
                z = F.normalize(d.values[i : i + 2], dim=-1)
                patch = (z[0][patch] @ z[1].T).argmax(1).numpy()
            predicted = d.centres[patch]
        error = np.linalg.norm(predicted - second, axis=1)
        hits += (error <= ALPHA * _box_side(images[i + 1])).tolist()
    return float(np.mean(hits)) if hits else float("nan")


def _box_side(sample: Sample) -> float:
    """Longer side in pixels of the object's bounding box; without a mask, of the image."""
    mask = sample.mask
    if mask is None or not mask.any():
        return float(max(sample.image.shape[:2]))
    rows, columns = np.nonzero(mask)
    return float(max(np.ptp(rows), np.ptp(columns)) + 1)

"""Which patch of one image is which patch of another: correspondences without training for them.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814, section 4.3:
binned keys, patches that are each other's nearest neighbour ("best buddies") where both are
salient, and of those a few well spread ones: the most salient pair of each of k clusters of pairs.

Measured, where keypoints are known, by PCK: the share of keypoints whose nearest patch's best match
lies within 0.1 of the longer side of the figure's box from where the keypoint really is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import Dense, ImagesOrSamples, dense, samples_of
from nolabel.pictures._tiles import Pictures, dots, sheet
from nolabel.pictures.picture import Picture
from nolabel.types import Sample

ALPHA = 0.1  # of PCK


def correspond(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: int = -1,
    facet: str = "auto",
    stride: int = 0,
    bins: bool = True,
    points: int = 10,
    least: float = 0.05,
    seed: int = 0,
) -> Pictures:
    """Matching points of pairs of images: the first and the second, the third and the fourth, ...

    Args:
        encoder: any; ViTs by their keys.
        images: an even number of what `Encoder.prepare` takes, or Samples.
        layer: which layer; -1 is the last (the paper takes the ninth of twelve).
        facet: key, query, value or token; auto is key, or token of a network without keys.
        stride: pixels from patch to patch; 0 is the patch itself.
        bins: whether patches are compared with their neighbourhoods.
        points: shown for each pair, at most.
        least: saliency of both patches, from 0 to 1.
        seed: of the choice among the matches.

    Raises:
        UsageError: an odd number of images, or see `dense`.
    """
    d = dense(encoder, images, layer=layer, facet=facet, stride=stride, bins=bins)
    count = len(d.values)
    if count < 2 or count % 2:
        raise UsageError(f"Correspondences need pairs of images, got {count}.")
    z = F.normalize(d.values, dim=-1)
    seen = d.saliency if d.saliency is not None else torch.ones(z.shape[:2])
    rows, data = [], {}
    for i in range(0, count, 2):
        a, b, cos = buddies(z[i], z[i + 1], seen[i] > least, seen[i + 1] > least)
        pairs, weight = torch.cat([z[i][a], z[i + 1][b]], 1), seen[i][a] + seen[i + 1][b]
        some = spread(pairs, weight, points, seed)
        at = [d.centres[side[some].numpy()] for side in (a, b)]
        rows.append([dots(d.pixels[i], at[0]), dots(d.pixels[i + 1], at[1])])
        data |= {f"points_{i}": at[0], f"points_{i + 1}": at[1], f"cosine_{i}": cos[some].numpy()}
    caption = (
        f"Patches of {encoder.name} ({d.facet}, layer {layer}) that are each other's nearest in "
        "the other image"
    )
    numbers: dict[str, float] = {}
    samples, marks = samples_of(images), keypoints(images)
    if samples is not None and marks is not None:
        numbers = {
            "pck": pck(d, samples, marks), "pck_colour": pck(d.by_colour(), samples, marks),
            "pck_same_place": pck(None, samples, marks),
            "pck_ceiling": pck(d, samples, marks, cheat=True),
        }  # fmt: skip
        caption += (
            f". Keypoints found within {ALPHA:g} of the figure's box: {numbers['pck']:.0%} (by "
            f"colour {numbers['pck_colour']:.0%}, by staying in place "
            f"{numbers['pck_same_place']:.0%}, at most {numbers['pck_ceiling']:.0%} on this grid)"
        )
    image = sheet(rows, ("one", "other"), 192)
    return Pictures(
        [Picture(name="correspond", image=image, caption=caption + ".", data=data, numbers=numbers)]
    )


def buddies(
    a: Tensor, b: Tensor, in_a: Tensor | None = None, in_b: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mutual nearest neighbours.

    Args:
        a, b: unit vectors [P, D] and [Q, D].
        in_a, in_b: bool [P] and [Q], which take part; None: all.

    Returns:
        Numbers in a and in b, int64 [M] each, and their cosines [M], highest first.
    """
    cos = a @ b.T
    if in_a is not None:
        cos = cos.masked_fill(~in_a[:, None], -torch.inf)
    if in_b is not None:
        cos = cos.masked_fill(~in_b[None], -torch.inf)
    value, forth = cos.max(1)
    back = cos.argmax(0)
    mutual = (back[forth] == torch.arange(len(a))) & (value > -torch.inf)
    order = value[mutual].argsort(descending=True)
    one = mutual.nonzero()[:, 0][order]
    return one, forth[one], value[one]


def spread(pairs: Tensor, weight: Tensor, count: int, seed: int) -> Tensor:
    """Of pairs [M, E], the one of largest weight [M] in each of `count` clusters: int64 [<= count],
    ascending."""
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
    """Keypoints [K, 3] of Samples; None if one has none, or they differ in number."""
    samples = samples_of(images)
    found = [s.keypoints for s in samples or () if s.keypoints is not None]
    whole = samples is not None and len(found) == len(samples)
    return found if whole and len({len(f) for f in found}) == 1 else None


def pck(
    d: Dense | None, images: Sequence[Sample], marks: list[np.ndarray], *, cheat: bool = False
) -> float:
    """PCK over the pairs; NaN if they share no keypoint.

    Args:
        d: descriptors; None stays in place.
        images: their Samples.
        marks: their keypoints.
        cheat: whether the patch nearest to the truth is taken: what the grid allows.
    """
    hits = []
    for i in range(0, len(images), 2):
        both = (marks[i][:, 2] > 0) & (marks[i + 1][:, 2] > 0)
        one, other = marks[i][both, :2], marks[i + 1][both, :2]
        if not len(one):
            continue
        found = one
        if d is not None:
            at = np.square(d.centres[None] - (other if cheat else one)[:, None]).sum(-1).argmin(1)
            if not cheat:
                z = F.normalize(d.values[i : i + 2], dim=-1)
                at = (z[0][at] @ z[1].T).argmax(1).numpy()
            found = d.centres[at]
        near = np.linalg.norm(found - other, axis=1) <= ALPHA * _box(images[i + 1])
        hits += near.tolist()
    return float(np.mean(hits)) if hits else float("nan")


def _box(sample: Sample) -> float:
    """The longer side of the figure's box in pixels; of the image without a mask."""
    mask = sample.mask
    if mask is None or not mask.any():
        return float(max(sample.image.shape[:2]))
    rows, columns = np.nonzero(mask)
    return float(max(np.ptp(rows), np.ptp(columns)) + 1)

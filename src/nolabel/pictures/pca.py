"""Patch features as colours: three principal components over all images, layer by layer.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, arXiv 2112.05814, figure 3: from
shallow to deep layers, features carry less of the position and more of the part. The figure shows
keys, and the second to fourth of four components: `--facet key --components 2 3 4 --each True`.
`--facet self-similarity` shows instead the cosines of each patch's key with all keys of its image,
which Tumanyan et al. ("Splicing ViT Features", 2022, arXiv 2201.00424, figure 3) call the structure
of an image; its components are those of one image alone. Measured with
several layers: how well a patch's position can be predicted from its features (R^2 of a ridge
regression), and the part that it shows (1-NN accuracy), both on held-out images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from nolabel.backbones.base import layer_number
from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import Dense, ImagesOrSamples, dense_layers, ground_truth
from nolabel.pictures._options import Help, Layer, Stride
from nolabel.pictures._tiles import Pictures, Series, chart, on_image, sheet, tile_shape
from nolabel.pictures.picture import Picture

_SHOWN = 12  # images drawn, at most; all are measured
_LOW, _HIGH = 1, 99  # percentiles mapped to 0 and 255, robust to outlier patches
SELF_SIMILARITY = "self-similarity"


def principal(features: np.ndarray, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Principal component analysis with deterministic signs.

    The sign of a component is such that its largest weight is positive, so that equal features give
    equal colours.

    Args:
        features: float [M, D].
        n: number of components.

    Returns:
        Scores, float64 [M, n], and the explained share of the variance, float64 [n].
    """
    x = features.astype(np.float64)
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / max(len(x) - 1, 1))
    order = np.argsort(values)[::-1][:n]
    values, vectors = values[order], vectors[:, order]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    total = max(float(np.square(x).sum() / max(len(x) - 1, 1)), 1e-12)
    return x @ (vectors * signs), values / total


def pca(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    layer: Layer = -1,
    facet: Annotated[
        str,
        Help("token, query, key, value, or self-similarity: cosines with all keys of the image"),
    ] = "token",
    components: Annotated[
        tuple[int, ...],
        Help("the three components that are red, green and blue, from 1; the paper's are 2 3 4"),
    ] = (1, 2, 3),
    each: Annotated[
        bool, Help("whether the colours span the range of each image, else that of all")
    ] = False,
    layers: Annotated[
        int,
        Help(
            "columns, from the first layer to --layer, each rotated so that its colours are as "
            "near as possible to those of the column before; with curves of what can be "
            "predicted from each layer, which need dozens of images"
        ),
    ] = 1,
    stride: Stride = 0,
    foreground: Annotated[
        bool,
        Help(
            "whether only the patches on the smaller side of the first component are coloured, by "
            "principal components of their own"
        ),
    ] = False,
) -> Pictures:
    """Three principal components of the patch features as red, green and blue.

    Args:
        encoder: any with patch features.
        images: anything `Encoder.prepare` takes, or Samples; all share one basis.

    Raises:
        UsageError: fewer than one column, not three components, or one of the errors of `dense`.
    """
    _check(layers, components)
    alone = facet == SELF_SIMILARITY
    last = layer_number(encoder.backbone, layer)
    deep = np.unique(np.linspace(0, last, layers).round().astype(int)) if layers > 1 else [layer]
    columns: list[np.ndarray] = []
    data: dict[str, np.ndarray] = {}
    positions, parts = [], []
    share = np.zeros(3)
    of_layers = dense_layers(
        encoder, images, [int(i) for i in deep], facet="key" if alone else facet, stride=stride,
        salient=False,
    )  # fmt: skip
    if alone:
        of_layers = [self_similarities(d) for d in of_layers]
    for d in of_layers:
        scores, share = _scores(d, foreground, components, alone)
        if columns:
            before = _resized(data[f"scores_{len(columns) - 1}"], d.grid)
            scores = align_components(scores, before, alone)
        data[f"scores_{len(columns)}"] = scores
        columns.append(to_colours(scores, each or alone))
        if len(deep) > 1:
            positions.append(place_r2(d))
            true_parts = ground_truth(images, "parts", d.pixels.shape[1:3])
            if true_parts is not None:
                parts.append(part_accuracy(d, true_parts))
    d = of_layers[-1]
    numbers = {f"explained_{i + 1}": float(v) for i, v in enumerate(share)}
    rows = [[x, *(on_image(x, c[n]) for c in columns)] for n, x in enumerate(d.shown[:_SHOWN])]
    titles = ["image", *(f"layer {i}" for i in deep)] if len(deep) > 1 else ["image", "components"]
    if len(deep) == 1:
        data = {"scores": data["scores_0"]}
    caption = _caption(encoder, d, deep[-1], components, share)
    out = [Picture(name="pca", image=sheet(rows, titles, tile_shape(d.shown)), caption=caption,
                   data=data, numbers=numbers)]  # fmt: skip
    if positions:
        out.append(_curves(encoder, [int(i) for i in deep], positions, parts, d, images))
    return Pictures(out)


def _check(layers: int, components: Sequence[int]) -> None:
    """Raises UsageError for fewer than one column, or not three components."""
    if layers < 1:
        raise UsageError(f"layers must be at least 1, got {layers}.")
    if len(components) != 3 or min(components) < 1:
        raise UsageError(
            f"components are three numbers from 1, such as 2 3 4, got {list(components)}."
        )


def _caption(
    encoder: Encoder, d: Dense, layer: int, components: Sequence[int], share: np.ndarray
) -> str:
    """What the picture of the last layer's descriptors d shows; share is that of the variance."""
    alone = d.facet.startswith(SELF_SIMILARITY)
    return (
        f"Patch features ({d.facet}, layer {layer}) of {encoder.name}: principal components "
        f"{', '.join(map(str, components))} {'of each image' if alone else 'over all images'} as "
        f"red, green, blue; they explain {share.sum():.0%} of the variance. Equal colours mean "
        "similar features"
    ) + ("." if alone else ": parts of one kind should match across images.")


def _curves(
    encoder: Encoder, deep: list[int], positions: list[float], parts: list[float], d: Dense,
    images: ImagesOrSamples,
) -> Picture:  # fmt: skip
    """A chart of how well position and part can be predicted from each layer.

    Args:
        encoder: whose name the caption says.
        deep: the layers.
        positions: R^2 of the position in each layer.
        parts: accuracy of the part in each layer; empty without true parts.
        d: descriptors of the last layer.
        images: the images, for the baseline by colour.
    """
    series: list[Series] = [("position (R²)", deep, positions, "-o")]
    numbers = {"place_first": positions[0], "place_last": positions[-1]}
    summary = (
        f"the position, R² {positions[0]:.2f} in layer {deep[0]} and {positions[-1]:.2f} in layer "
        f"{deep[-1]} (1 is perfect, 0 is chance)"
    )
    data = {"layers": np.array(deep), "place_r2": np.array(positions)}
    if parts:
        true_parts = ground_truth(images, "parts", d.pixels.shape[1:3])
        assert true_parts is not None  # noqa: S101 - parts were measured with it
        by_colour = part_accuracy(d.by_colour(), true_parts)
        series += [("part", deep, parts, "-o"), ("part from colour", deep, [by_colour] * len(deep),
                                                 "--")]  # fmt: skip
        numbers |= {"part_first": parts[0], "part_last": parts[-1], "part_colour": by_colour}
        summary += (
            f"; the part, accuracy {parts[0]:.0%} and {parts[-1]:.0%} (from colour instead of "
            f"features {by_colour:.0%})"
        )
        data["part_accuracy"] = np.array(parts)
    return Picture(
        name="pca-layers", image=chart(series, "layer", "predicted from the features"), data=data,
        caption=f"Predicted from the patch features of {encoder.name}, on held-out images: "
        f"{summary}.", numbers=numbers,
    )  # fmt: skip


def self_similarities(d: Dense) -> Dense:
    """Cosines of each patch with all patches of its image instead of the descriptors."""
    z = F.normalize(d.values, dim=-1)
    return replace(d, values=z @ z.transpose(1, 2), facet=f"{SELF_SIMILARITY} of {d.facet}s")


def _scores(
    d: Dense, foreground: bool, components: Sequence[int], alone: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of three components and their explained shares.

    Args:
        d: the descriptors.
        foreground: as in `pca`.
        components: numbers of the three components, from 1.
        alone: whether each image has components of its own.

    Returns:
        float64 [N, h, w, 3], NaN outside the foreground, and float64 [3].
    """
    fits = [
        _fit(x.flatten(0, 1).numpy(), foreground, components)
        for x in d.values.split(1 if alone else len(d.values))
    ]
    scores = np.concatenate([s for s, _ in fits]).reshape(len(d.values), *d.grid, 3)
    return scores, np.mean([share for _, share in fits], axis=0)


def _fit(
    flat: np.ndarray, foreground: bool, components: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """As `_scores`, of rows float [M, D]: float64 [M, 3] and [3]; 0 beyond the last component."""
    count = max(components)
    side = np.ones(len(flat), dtype=bool)
    if foreground:
        side = principal(flat, 1)[0][:, 0] > 0
        side = side if side.mean() <= 0.5 else ~side  # the foreground is the smaller side
    inside, share = principal(flat[side], count)
    scores = np.full((len(flat), count), np.nan)
    scores[side] = np.pad(inside, ((0, 0), (0, count - inside.shape[1])))
    at = np.array(components) - 1
    return scores[:, at], np.pad(share, (0, count - len(share)))[at]


def to_colours(scores: np.ndarray, each: bool = False) -> np.ndarray:
    """Scores as colours; NaN is black.

    Args:
        scores: float [N, h, w, 3].
        each: whether each image is scaled by its own smallest and largest scores; else all by the
            percentiles of all.

    Returns:
        uint8 [N, h, w, 3].
    """
    if each and len(scores) > 1:
        return np.concatenate([to_colours(s[None], True) for s in scores])
    flat = scores.reshape(-1, 3)
    if np.isnan(flat).all():
        return np.zeros(scores.shape, np.uint8)
    low, high = (np.nanpercentile(flat, p, 0) for p in ((0, 100) if each else (_LOW, _HIGH)))
    scaled = ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (np.nan_to_num(scaled) * 255).astype(np.uint8)


def align_components(scores: np.ndarray, reference: np.ndarray, alone: bool = False) -> np.ndarray:
    """Aligns components to reference scores by orthogonal Procrustes (rotation and reflection).

    Args:
        scores: float [N, h, w, 3]; each component is scaled to unit deviation.
        reference: float [N, h, w, 3].
        alone: whether each image is aligned by itself.

    Returns:
        float [N, h, w, 3].
    """
    if alone and len(scores) > 1:
        pairs = zip(scores, reference, strict=True)
        return np.concatenate([align_components(a[None], b[None]) for a, b in pairs])
    a, b = (_standardise(x.reshape(-1, 3)) for x in (scores, reference))
    both = ~(np.isnan(a).any(1) | np.isnan(b).any(1))
    u, _, vt = np.linalg.svd(a[both].T @ b[both])
    return (a @ (u @ vt)).reshape(scores.shape)


def _standardise(x: np.ndarray) -> np.ndarray:
    """Columns of float [M, D] to mean 0 and deviation 1, without NaN."""
    x = x - np.nanmean(x, 0)
    return x / np.maximum(np.nanstd(x, 0), 1e-12)


def _resized(scores: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Scores [N, h, w, 3] resized to another grid, for networks whose grid shrinks with depth."""
    if scores.shape[1:3] == grid:
        return scores
    x = torch.from_numpy(np.nan_to_num(scores)).permute(0, 3, 1, 2)
    return F.interpolate(x, grid, mode="bilinear").permute(0, 2, 3, 1).numpy()


def _halves(d: Dense) -> tuple[Tensor, Tensor]:
    """Standardised patch features [M, D] of the first and of the second half of the images."""
    z = d.values - d.values.mean((0, 1))
    z = z / z.std((0, 1)).clamp_min(1e-6)
    half = max(len(z) // 2, 1)
    return z[:half].flatten(0, 1), z[half:].flatten(0, 1)


def place_r2(d: Dense) -> float:
    """R^2 of predicting a patch's position from its features by ridge regression.

    Fitted on the first half of the images and measured on the second. 1 is perfect; 0 is no better
    than predicting the mean position; it can be negative. NaN for one image.
    """
    if len(d.values) < 2:
        return float("nan")
    a, b = (z.double().numpy() for z in _halves(d))
    centred = d.centres - d.centres.mean(0)
    train, test = (np.tile(centred, (len(z) // len(centred), 1)) for z in (a, b))
    predicted = Ridge(alpha=len(a) * 1e-2).fit(a, train).predict(b)
    return float(1 - np.square(predicted - test).sum() / np.square(test - test.mean(0)).sum())


def part_accuracy(d: Dense, true_parts: np.ndarray) -> float:
    """1-NN accuracy of the part that a foreground patch shows.

    Neighbours are the foreground patches of the first half of the images; queries are those of the
    second half.

    Args:
        d: the descriptors.
        true_parts: part maps, int [N, H, W], 0 for the background.

    Returns:
        Accuracy in 0..1; NaN if a half has no foreground patch.
    """
    half = max(len(d.values) // 2, 1)
    labels = d.at_centres(true_parts)
    a, b = (F.normalize(z, dim=1) for z in _halves(d))
    y, t = torch.from_numpy(labels[:half].ravel()), torch.from_numpy(labels[half:].ravel())
    a, y, b, t = a[y > 0], y[y > 0], b[t > 0], t[t > 0]
    if not len(a) or not len(b):
        return float("nan")
    return float((y[(b @ a.T).argmax(1)] == t).float().mean())

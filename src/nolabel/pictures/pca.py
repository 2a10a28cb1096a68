"""Patch features as colours: principal components, joint over the images, through the layers.

Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, figure 3: places fade and parts
appear from shallow to deep. Measured here: how well a patch's place can be read from its features
(R^2 of a ridge regression), and which part it shows (its nearest neighbour's), on images that were
not learnt from.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from nolabel.backbones.base import layer_number
from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._dense import Dense, ImagesOrSamples, dense_layers, truth
from nolabel.pictures._tiles import Pictures, chart, sheet
from nolabel.pictures.picture import Picture

_SHOWN = 12  # images that are drawn; all are measured
_LOW, _HIGH = 1, 99  # percentiles that become black and full colour: one odd patch ruins no picture


def principal(features: np.ndarray, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """First n principal components of float [M, D]: scores [M, n], explained share [n].

    Signs are fixed so that the largest weight of every component is positive: the same features
    give the same colours.
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
    layer: int = -1,
    facet: str = "token",
    layers: int = 1,
    stride: int = 0,
    foreground: bool = False,
) -> Pictures:
    """Three components of the patch features as red, green and blue, one basis for all images.

    Args:
        encoder: any.
        images: anything `Encoder.prepare` takes, or Samples.
        layer: which layer; -1 is the last.
        facet: token, query, key or value.
        layers: columns, from the first layer to `layer`, each turned so that its colours are as
            near as they can be to those on its left; with curves of what can be read from each,
            which want dozens of images.
        stride: pixels from patch to patch; 0 is the patch itself.
        foreground: whether patches on the first component's smaller side alone are coloured, by
            components of their own.

    Raises:
        UsageError: fewer than one column, or see `dense`.
    """
    if layers < 1:
        raise UsageError(f"layers must be at least 1, got {layers}.")
    last = layer_number(encoder.backbone, layer)
    deep = np.unique(np.linspace(0, last, layers).round().astype(int)) if layers > 1 else [layer]
    columns: list[np.ndarray] = []
    numbers: dict[str, float] = {}
    data: dict[str, np.ndarray] = {}
    places, parts = [], []
    share = np.zeros(3)
    walked = dense_layers(encoder, images, [int(i) for i in deep], facet=facet, stride=stride,
                          salient=False)  # fmt: skip
    for d in walked:
        scores, share = _scores(d, foreground)
        if columns:
            scores = turned(scores, _resized(data[f"scores_{len(columns) - 1}"], d.grid))
        data[f"scores_{len(columns)}"] = scores
        columns.append(coloured(scores))
        if len(deep) > 1:
            places.append(place_r2(d))
            own = truth(images, "parts", d.pixels.shape[1])
            if own is not None:
                parts.append(part_accuracy(d, own))
    d = walked[-1]
    numbers |= {f"explained_{i + 1}": float(v) for i, v in enumerate(share)}
    rows = [[image, *(c[n] for c in columns)] for n, image in enumerate(d.pixels[:_SHOWN])]
    titles = ["image", *(f"layer {i}" for i in deep)] if len(deep) > 1 else ["image", "components"]
    caption = (
        f"Patch features ({d.facet}, layer {deep[-1]}) of {encoder.name}: three principal "
        f"components over all images as red, green, blue; they explain {share.sum():.0%}."
    )
    if len(deep) == 1:
        data = {"scores": data["scores_0"]}
    out = [Picture(name="pca", image=sheet(rows, titles), caption=caption, data=data,
                   numbers=numbers)]  # fmt: skip
    if places:
        out.append(_curves(encoder, [int(i) for i in deep], places, parts, d, images))
    return Pictures(out)


def _curves(
    encoder: Encoder, deep: list[int], places: list[float], parts: list[float], d: Dense,
    images: ImagesOrSamples,
) -> Picture:  # fmt: skip
    """How well place and part can be read from each layer."""
    series = [("place (R²)", deep, places, "-o")]
    numbers = {"place_first": places[0], "place_last": places[-1]}
    said = f"place from {places[0]:.2f} in layer {deep[0]} to {places[-1]:.2f} in layer {deep[-1]}"
    data = {"layers": np.array(deep), "place_r2": np.array(places)}
    if parts:
        own = truth(images, "parts", d.pixels.shape[1])
        assert own is not None  # noqa: S101 - parts were measured with it
        by_colour = part_accuracy(d.by_colour(), own)
        series += [("part", deep, parts, "-o"), ("part by colour", deep, [by_colour] * len(deep),
                                                 "--")]  # fmt: skip
        numbers |= {"part_first": parts[0], "part_last": parts[-1], "part_colour": by_colour}
        said += f", part from {parts[0]:.0%} to {parts[-1]:.0%} (by colour {by_colour:.0%})"
        data["part_accuracy"] = np.array(parts)
    return Picture(
        name="pca-layers", image=chart(series, "layer", "read from the features"), data=data,
        caption=f"What can be read from patches of {encoder.name}: {said}.", numbers=numbers,
    )  # fmt: skip


def _scores(d: Dense, foreground: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, h, w, 3] and the shares that they explain; NaN outside the foreground."""
    flat = d.values.flatten(0, 1).numpy()
    scores, share = principal(flat)
    if foreground:
        side = scores[:, 0] > 0
        side = side if side.mean() <= 0.5 else ~side  # the figure is the smaller part
        own, share = principal(flat[side])
        scores = np.full((len(flat), own.shape[1]), np.nan)
        scores[side] = own
    scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
    return scores.reshape(len(d.values), *d.grid, 3), share


def coloured(scores: np.ndarray) -> np.ndarray:
    """uint8 [N, h, w, 3]; what is NaN is black."""
    flat = scores.reshape(-1, 3)
    if np.isnan(flat).all():
        return np.zeros(scores.shape, np.uint8)
    low, high = (np.nanpercentile(flat, p, 0) for p in (_LOW, _HIGH))
    shown = ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (np.nan_to_num(shown) * 255).astype(np.uint8)


def turned(scores: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Scores [N, h, w, 3], each component to unit deviation, turned by the rotation or mirror that
    brings them nearest to others (orthogonal Procrustes)."""
    a, b = (_unit(x.reshape(-1, 3)) for x in (scores, like))
    both = ~(np.isnan(a).any(1) | np.isnan(b).any(1))
    u, _, vt = np.linalg.svd(a[both].T @ b[both])
    return (a @ (u @ vt)).reshape(scores.shape)


def _unit(x: np.ndarray) -> np.ndarray:
    x = x - np.nanmean(x, 0)
    return x / np.maximum(np.nanstd(x, 0), 1e-12)


def _resized(scores: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Scores [N, h, w, 3] on another grid, for networks whose layers have different ones."""
    if scores.shape[1:3] == grid:
        return scores
    x = torch.from_numpy(np.nan_to_num(scores)).permute(0, 3, 1, 2)
    return F.interpolate(x, grid, mode="bilinear").permute(0, 2, 3, 1).numpy()


def _halves(d: Dense) -> tuple[Tensor, Tensor]:
    """Features of the first half of the images [M, D] and of the second, standardised."""
    z = d.values - d.values.mean((0, 1))
    z = z / z.std((0, 1)).clamp_min(1e-6)
    half = max(len(z) // 2, 1)
    return z[:half].flatten(0, 1), z[half:].flatten(0, 1)


def place_r2(d: Dense) -> float:
    """R^2 of a patch's place by ridge regression, learnt on half of the images and measured on the
    others; 0 is the mean place, and below. NaN for one image."""
    if len(d.values) < 2:
        return float("nan")
    a, b = (z.double().numpy() for z in _halves(d))
    where = d.centres - d.centres.mean(0)
    train, test = (np.tile(where, (len(z) // len(where), 1)) for z in (a, b))
    found = Ridge(alpha=len(a) * 1e-2).fit(a, train).predict(b)
    return float(1 - np.square(found - test).sum() / np.square(test - test.mean(0)).sum())


def part_accuracy(d: Dense, own: np.ndarray) -> float:
    """Share of figure patches whose nearest neighbour among the other half's figure patches shows
    the same part; own is the parts' map [N, H, W]. NaN where there is nothing to compare."""
    half = max(len(d.values) // 2, 1)
    labels = d.at(own)
    a, b = (F.normalize(z, dim=1) for z in _halves(d))
    y, t = torch.from_numpy(labels[:half].ravel()), torch.from_numpy(labels[half:].ravel())
    a, y, b, t = a[y > 0], y[y > 0], b[t > 0], t[t > 0]
    if not len(a) or not len(b):
        return float("nan")
    return float((y[(b @ a.T).argmax(1)] == t).float().mean())

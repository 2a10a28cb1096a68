"""Patch features as colours: principal components, joint over the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nolabel.pictures.dense import plain
from nolabel.pictures.paint import Pictures, sheet, to_pixels
from nolabel.types import Picture
from nolabel.weights import Encoder


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


def pca(encoder: Encoder, images: Any, *, layer: int = -1, facet: str = "token") -> Pictures:
    """Three components of the patch features as red, green and blue, one basis for all images.

    Args:
        encoder: any.
        images: anything `Encoder.prepare` takes, or Samples.
        layer: which layer; -1 is the last (for "token" through the final norm).
        facet: token, query, key or value.
    """
    x = encoder.prepare(plain(images))
    if facet == "token":
        t = encoder.tokens(x, layer)
    else:
        with torch.inference_mode(), encoder.evaluating():
            t = encoder.backbone.facets(x.to(encoder.device), layer, facet)
    h, w = t.grid
    patches = t.patches.cpu().float().numpy()
    scores, share = principal(patches.reshape(-1, patches.shape[-1]))
    low, high = np.percentile(scores, 1, 0), np.percentile(scores, 99, 0)
    colours = ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colours = np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])))
    tiles = (colours * 255).astype(np.uint8).reshape(len(x), h, w, 3)
    pixels = to_pixels(x.numpy(), encoder.mean, encoder.std)
    rows = [list(pixels), list(tiles)]
    caption = (
        f"Patch features ({facet}, layer {layer}) of {encoder.name}: three principal components "
        f"over all images as red, green, blue; they explain {share.sum():.0%}."
    )
    numbers = {f"explained_{i + 1}": float(v) for i, v in enumerate(share)}
    return Pictures(
        [Picture(name="pca", image=sheet(rows), caption=caption,
                 data={"scores": scores.reshape(len(x), h, w, -1)}, numbers=numbers)]
    )  # fmt: skip

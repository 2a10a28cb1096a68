"""A map of a set: images that the encoder takes for alike lie near each other.

van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008. Distances on the map mean little
beyond the nearest neighbours, so the numbers come from the features themselves: the share of an
image's ten nearest that are of its class, before and after the map.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.manifold import TSNE

from nolabel.data.source import Source
from nolabel.encoders import Encoder
from nolabel.encoders.features import extract
from nolabel.errors import DataError, UsageError
from nolabel.nn.knn import nearest
from nolabel.pictures._tiles import Pictures, chart
from nolabel.pictures.picture import Picture

NEAR = 10
KINDS = ("tsne", "umap")


def tsne(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    by: str = "tsne",
    centroids: bool = False,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Pictures:
    """The embeddings of a set in the plane, coloured by class where it has labels.

    Args:
        encoder: any.
        images: not used.
        gallery: the set.
        by: tsne, or umap (an extra).
        centroids: whether the mean of each class is a point, instead of each image.
        perplexity: neighbours that a point minds, roughly; below a third of the points.
        seed: of the map.

    Raises:
        UsageError: an unknown kind of map, or one whose extra is not installed.
        DataError: fewer than four points, or centroids without labels.
    """
    if by not in KINDS:
        raise UsageError(f"by must be one of {', '.join(KINDS)}, got {by!r}.")
    found = extract(encoder, gallery)
    z = F.normalize(found.values, dim=1)
    labels = None if found.labels is None else found.labels.numpy()
    names = [str(c) for c in gallery.classes or ()]
    if centroids:
        if labels is None:
            raise DataError(f"{gallery.name} has no labels, so no means of classes.")
        kinds = np.unique(labels)
        z = F.normalize(torch.stack([z[labels == c].mean(0) for c in kinds]), dim=1)
        labels = kinds
    n = len(z)
    if n < 4:
        raise DataError(f"A map needs four points, {gallery.name} gives {n}.")
    used = min(perplexity, (n - 1) / 3)
    at = _umap(z.numpy(), used, seed) if by == "umap" else TSNE(
        perplexity=used, init="pca", random_state=seed, metric="cosine"
    ).fit_transform(z.double().numpy())  # fmt: skip
    groups = [("", at[:, 0], at[:, 1], "o")]
    if labels is not None:
        groups = [
            (names[c] if c < len(names) else str(c), *at[labels == c].T, "o")
            for c in np.unique(labels)
        ]
    caption = f"{n:,} {'class means' if centroids else 'images'} of {gallery.name} by "
    caption += f"{encoder.name}, {by}, perplexity {used:g}"
    numbers: dict[str, float] = {}
    if labels is not None and not centroids:
        plane = torch.from_numpy(np.asarray(at, dtype=np.float32))
        share = [np.mean(labels == c) for c in np.unique(labels)]
        numbers = {
            "same_class": purity(z, labels),
            "same_class_on_map": _flat_purity(plane, labels),
            "same_class_chance": float(np.sum(np.square(share))),
        }
        caption += (
            f". Of an image's {NEAR} nearest {numbers['same_class']:.0%} are of its class (on the "
            f"map {numbers['same_class_on_map']:.0%}, by chance "
            f"{numbers['same_class_chance']:.0%})"
        )
    data = {"map": np.asarray(at), "keys": found.keys.numpy()}
    if labels is not None:
        data["labels"] = labels
    image = chart(groups, "", "", ticks=False, side=6.0)
    return Pictures(
        [Picture(name="tsne", image=image, caption=caption + ".", data=data, numbers=numbers)]
    )


def purity(z: torch.Tensor, labels: np.ndarray) -> float:
    """Share of the nearest by cosine of unit rows [N, D] that have the row's label, without it."""
    index = nearest(z, z, min(NEAR, len(z) - 1) + 1)[1].numpy()
    return _share(index, labels)


def _flat_purity(at: torch.Tensor, labels: np.ndarray) -> float:
    """The same by distance in the plane."""
    apart = torch.cdist(at, at)
    return _share(apart.topk(min(NEAR, len(at) - 1) + 1, largest=False).indices.numpy(), labels)


def _share(index: np.ndarray, labels: np.ndarray) -> float:
    others = index != np.arange(len(index))[:, None]
    same = labels[index] == labels[:, None]
    return float((same & others).sum() / others.sum())


def _umap(z: np.ndarray, near: float, seed: int) -> np.ndarray:
    try:
        umap: Any = importlib.import_module("umap")
    except ImportError:
        raise UsageError("--by umap needs its extra: pip install 'nolabel[umap]'.") from None
    return umap.UMAP(n_neighbors=max(int(near), 2), random_state=seed, metric="cosine"
                     ).fit_transform(z)  # fmt: skip

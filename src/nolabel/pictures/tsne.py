"""A two-dimensional map of a set, by t-SNE or UMAP: images with similar features lie close.

van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008. Distances on the map mean
little beyond the nearest neighbours. Hence the number is the share of an image's ten nearest
neighbours that are of its class, in the features and on the map.
"""

from __future__ import annotations

import importlib
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.manifold import TSNE

from nolabel.data.source import Source
from nolabel.encoders import Encoder
from nolabel.encoders.features import extract
from nolabel.errors import DataError, UsageError
from nolabel.nn.knn import nearest
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, Series, chart
from nolabel.pictures.picture import Picture

NEIGHBOURS = 10  # of the purity
PROJECTIONS = ("tsne", "umap")


def tsne(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    by: Annotated[str, Help("tsne, or umap (an extra)")] = "tsne",
    centroids: Annotated[
        bool, Help("whether each point is the mean of a class, instead of an image")
    ] = False,
    perplexity: Annotated[
        float,
        Help("effective number of neighbours of a point; at most a third of the points is used"),
    ] = 30.0,
    seed: Annotated[int, Help("seed of the map")] = 0,
) -> Pictures:
    """The embeddings of a set in the plane, coloured by class if it has labels.

    Args:
        encoder: any.
        images: not used.
        gallery: the set.

    Raises:
        UsageError: `by` is unknown, or its extra is not installed.
        DataError: there are fewer than four points, or centroids are wanted without labels.
    """
    if by not in PROJECTIONS:
        raise UsageError(f"by must be one of {', '.join(PROJECTIONS)}, got {by!r}.")
    features = extract(encoder, gallery)
    z = F.normalize(features.values, dim=1)
    labels = None if features.labels is None else features.labels.numpy()
    names = [str(c) for c in gallery.classes or ()]
    if centroids:
        if labels is None:
            raise DataError(f"{gallery.name} has no labels, so no means of classes.")
        classes = np.unique(labels)
        z = F.normalize(torch.stack([z[labels == c].mean(0) for c in classes]), dim=1)
        labels = classes
    n = len(z)
    if n < 4:
        raise DataError(f"A map needs four points, {gallery.name} gives {n}.")
    perplexity = min(perplexity, (n - 1) / 3)
    if by == "umap":
        xy = _umap(z.numpy(), perplexity, seed)
    else:
        model = TSNE(perplexity=perplexity, init="pca", random_state=seed, metric="cosine")
        xy = np.asarray(model.fit_transform(z.double().numpy()))
    series: list[Series] = [("", xy[:, 0], xy[:, 1], "o")]
    if labels is not None:
        series = [
            (names[c] if c < len(names) else str(c), *xy[labels == c].T, "o")
            for c in np.unique(labels)
        ]
    caption = (
        f"Map of {n:,} {'class means' if centroids else 'images'} of {gallery.name} by the "
        f"features of {encoder.name} ({by}, perplexity {perplexity:g}); similar images lie close"
    )
    numbers: dict[str, float] = {}
    if labels is not None and not centroids:
        plane = torch.from_numpy(np.asarray(xy, dtype=np.float32))
        share = [np.mean(labels == c) for c in np.unique(labels)]
        numbers = {
            "same_class": purity(z, labels),
            "same_class_on_map": _map_purity(plane, labels),
            "same_class_chance": float(np.sum(np.square(share))),
        }
        caption += (
            f". {numbers['same_class']:.0%} of an image's {NEIGHBOURS} nearest neighbours by "
            f"features are of its class (higher is better; on the map "
            f"{numbers['same_class_on_map']:.0%}, chance {numbers['same_class_chance']:.0%})"
        )
    data = {"map": xy, "keys": features.keys.numpy()}
    if labels is not None:
        data["labels"] = labels
    image = chart(series, "", "", ticks=False, side=6.0)
    return Pictures(
        [Picture(name="tsne", image=image, caption=caption + ".", data=data, numbers=numbers)]
    )


def purity(z: torch.Tensor, labels: np.ndarray) -> float:
    """Share of the nearest neighbours by cosine that have the row's label, the row left out.

    Args:
        z: unit rows, float [N, D].
        labels: int [N].
    """
    index = nearest(z, z, min(NEIGHBOURS, len(z) - 1) + 1)[1].numpy()
    return _share_of_label(index, labels)


def _map_purity(xy: torch.Tensor, labels: np.ndarray) -> float:
    """As `purity`, by Euclidean distance of float [N, 2]."""
    nearest_first = torch.cdist(xy, xy).topk(min(NEIGHBOURS, len(xy) - 1) + 1, largest=False)
    return _share_of_label(nearest_first.indices.numpy(), labels)


def _share_of_label(index: np.ndarray, labels: np.ndarray) -> float:
    """Share of neighbours int [N, K] with the row's label int [N], the row itself left out."""
    others = index != np.arange(len(index))[:, None]
    same = labels[index] == labels[:, None]
    return float((same & others).sum() / others.sum())


def _umap(z: np.ndarray, neighbours: float, seed: int) -> np.ndarray:
    """UMAP of rows [N, D]: float [N, 2]."""
    try:
        umap = importlib.import_module("umap")
    except ImportError:
        raise UsageError("--by umap needs its extra: pip install 'nolabel[umap]'.") from None
    model = umap.UMAP(n_neighbors=max(int(neighbours), 2), random_state=seed, metric="cosine")
    return np.asarray(model.fit_transform(z))

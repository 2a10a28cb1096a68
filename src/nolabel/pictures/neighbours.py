"""Nearest neighbours: the images of a set with the highest cosine similarity to each query."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch.nn.functional as F

from nolabel.data.source import Source
from nolabel.encoders import Encoder, load
from nolabel.encoders.encoder import list_images, read_pixels
from nolabel.encoders.features import Features, extract
from nolabel.errors import DataError, UsageError
from nolabel.nn.knn import nearest
from nolabel.pictures._dense import ImagesOrSamples, images_of, samples_of
from nolabel.pictures._options import Help
from nolabel.pictures._shown import shown_image
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture


def neighbours(
    encoder: Encoder,
    images: ImagesOrSamples,
    *,
    gallery: Source,
    k: Annotated[int, Help("neighbours shown")] = 7,
) -> Pictures:
    """One row for each query: the image, then its nearest neighbours in the gallery.

    Args:
        encoder: any.
        images: the queries, anything `Encoder.prepare` takes, or Samples.
        gallery: the images searched; an exact copy of the query is skipped.

    Raises:
        UsageError: k is below 1.
        DataError: fewer than two images of the gallery can be read.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}.")
    c = encoder.channels
    queries = [read_pixels(image, c) for image in list_images(images_of(images), c)]
    features = extract(encoder, gallery)
    if len(features.values) < 2:
        raise DataError(f"Neighbours need two images or more; {gallery.name!r} has one.")
    index, cosines = nearest_neighbours(encoder, queries, features, k)
    tiles, titles = [], ["image", *(f"{i + 1}." for i in range(index.shape[1]))]
    keys = features.keys.numpy()
    for query, row in zip(queries, index, strict=True):
        tiles.append([query, *(shown_image(gallery, int(keys[i])) for i in row)])
    caption = (
        f"Each image and its nearest neighbours by {encoder.name} among {len(keys):,} images of "
        f"{gallery.name}"
    )
    numbers: dict[str, float] = {}
    query_labels = [s.label for s in samples_of(images) or ()]
    if features.labels is not None and query_labels and all(v is not None for v in query_labels):
        truth, labels = np.array(query_labels), features.labels.numpy()
        pixels = load("pixels", image_size=encoder.image_size, channels=encoder.channels)
        by_pixels = nearest_neighbours(pixels, queries, extract(pixels, gallery), k)[0]
        numbers = {
            "same_class": float((labels[index] == truth[:, None]).mean()),
            "same_class_pixels": float((labels[by_pixels] == truth[:, None]).mean()),
            "same_class_chance": float(np.mean([(labels == v).mean() for v in truth])),
        }
        caption += (
            f". {numbers['same_class']:.0%} of them are of the image's class (higher is better; "
            f"neighbours by raw pixels {numbers['same_class_pixels']:.0%}, chance "
            f"{numbers['same_class_chance']:.0%})"
        )
    data = {"rows": keys[index], "cosine": cosines}
    return Pictures(
        [Picture(name="neighbours", image=sheet(tiles, titles, 96), caption=caption + ".",
                 data=data, numbers=numbers)]
    )  # fmt: skip


def nearest_neighbours(
    encoder: Encoder, queries: list[np.ndarray], features: Features, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row indices of the nearest features, int64 [M, <= k], and their cosines, float32 [M, <= k].

    Exact copies of a query (cosine 1) are skipped.
    """
    z = F.normalize(encoder.embed(queries), dim=1)
    rows = F.normalize(features.values, dim=1)
    cosines, index = nearest(z, rows, k + 1)
    out_i, out_c = [], []
    for c, i in zip(cosines.numpy(), index.numpy(), strict=True):
        keep = slice(1, None) if c[0] > 1 - 1e-5 else slice(0, k)
        out_i.append(i[keep])
        out_c.append(c[keep])
    width = min(len(i) for i in out_i)
    return np.stack([i[:width] for i in out_i]), np.stack([c[:width] for c in out_c])

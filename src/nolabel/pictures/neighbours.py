"""The images of a set that an encoder takes for most alike."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F

from nolabel.data.source import Source
from nolabel.encoders import Encoder, load
from nolabel.encoders.encoder import list_images, read_pixels
from nolabel.encoders.features import Features, extract
from nolabel.errors import UsageError
from nolabel.nn.knn import nearest
from nolabel.pictures._dense import ImagesOrSamples, images_of, samples_of
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture


def neighbours(
    encoder: Encoder, images: ImagesOrSamples, *, gallery: Source, k: int = 7
) -> Pictures:
    """One row an image: the image, then its nearest in the gallery, nearest first.

    Args:
        encoder: any.
        images: anything `Encoder.prepare` takes, or Samples.
        gallery: where neighbours are looked for; an image that is the query itself is passed over.
        k: neighbours shown.

    Raises:
        UsageError: k is below 1.
        DataError: no image of the gallery can be read.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}.")
    c = encoder.channels
    queries = [read_pixels(image, c) for image in list_images(images_of(images), c)]
    found = extract(encoder, gallery)
    rows = ranked(encoder, queries, found, k)
    tiles, titles = [], ["image", *(f"{i + 1}." for i in range(rows[0].shape[1]))]
    keys = found.keys.numpy()
    for query, near in zip(queries, rows[0], strict=True):
        tiles.append([query, *(gallery.read(int(keys[i])).image for i in near)])
    caption = f"Nearest images of {gallery.name} ({len(keys):,}) by {encoder.name}"
    numbers: dict[str, float] = {}
    own = [s.label for s in samples_of(images) or ()]
    if found.labels is not None and own and all(v is not None for v in own):
        truth, labels = np.array(own), found.labels.numpy()
        pixels = load("pixels", image_size=encoder.image_size, channels=encoder.channels)
        by_pixels = ranked(pixels, queries, extract(pixels, gallery), k)[0]
        numbers = {
            "same_class": float((labels[rows[0]] == truth[:, None]).mean()),
            "same_class_pixels": float((labels[by_pixels] == truth[:, None]).mean()),
            "same_class_chance": float(np.mean([(labels == v).mean() for v in truth])),
        }
        caption += (
            f". {numbers['same_class']:.0%} are of the image's class (by pixels "
            f"{numbers['same_class_pixels']:.0%}, by chance {numbers['same_class_chance']:.0%})"
        )
    data = {"rows": keys[rows[0]], "cosine": rows[1]}
    return Pictures(
        [Picture(name="neighbours", image=sheet(tiles, titles, 96), caption=caption + ".",
                 data=data, numbers=numbers)]
    )  # fmt: skip


def ranked(
    encoder: Encoder, queries: list[np.ndarray], found: Features, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers among the features and cosines, [M, <= k] both, without exact copies of the query."""
    z = F.normalize(encoder.embed(queries), dim=1)
    rows = F.normalize(found.values, dim=1)
    cosines, index = nearest(z, rows, k + 1)
    out_i, out_c = [], []
    for c, i in zip(cosines.numpy(), index.numpy(), strict=True):
        keep = slice(1, None) if c[0] > 1 - 1e-5 else slice(0, k)
        out_i.append(i[keep])
        out_c.append(c[keep])
    least = min(len(i) for i in out_i)
    return np.stack([i[:least] for i in out_i]), np.stack([c[:least] for c in out_c])

"""Images that a source lists several times: with several captions, or with several labels.

Rows of a table with the same path are one image. Flickr30k and COCO have five captions an image,
VOC and COCO several classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nolabel.data.source import Source, Subset
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract


@dataclass(frozen=True)
class Listing:
    """The rows of a source, by image.

    Attributes:
        image: int64 [rows], the image of each row, numbered in the order of first rows.
        first: int64 [images], the first row of each image.
    """

    image: np.ndarray
    first: np.ndarray

    @property
    def repeated(self) -> bool:
        """Whether an image has several rows."""
        return len(self.first) < len(self.image)


def listing(source: Source) -> Listing:
    """Groups the rows of a source by their paths."""
    number: dict[str, int] = {}
    image = np.array([number.setdefault(source.path(i), len(number)) for i in range(len(source))])
    return Listing(image, np.unique(image, return_index=True)[1])


def extract_once(
    encoder: Encoder, source: Source, rows: Listing, features: Features | None, batch_size: int
) -> Features:
    """Features of the first row of each image; keys and labels are those of these rows.

    Args:
        encoder: the encoder.
        source: the source.
        rows: its listing.
        features: features of all rows, if they were computed before.
        batch_size: images in a forward pass.
    """
    if features is not None:
        if not rows.repeated:
            return features
        at = torch.from_numpy(np.flatnonzero(np.isin(features.keys.numpy(), rows.first)))
        labels = None if features.labels is None else features.labels[at]
        return Features(features.values[at], labels, features.skipped, features.keys[at])
    if not rows.repeated:
        return extract(encoder, source, batch_size=batch_size)
    found = extract(encoder, Subset(source, rows.first), batch_size=batch_size)
    keys = torch.from_numpy(rows.first)[found.keys]
    return Features(found.values, found.labels, found.skipped, keys)


def label_matrix(labels: np.ndarray, image: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Which labels each image has, bool [count, classes].

    Args:
        labels: int64 [rows].
        image: int64 [rows], the image of each row; -1 is left out.
        count: number of images.
        classes: number of classes.
    """
    out = np.zeros((count, classes), dtype=bool)
    used = image >= 0
    out[image[used], labels[used]] = True
    return out


def average_precisions(scores: Tensor | np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Average precision of each class: precision where recall rises, weighted by the rise.

    Equal scores count as one step. This is the definition of scikit-learn; it does not interpolate.

    Args:
        scores: float [N, C].
        truth: bool [N, C].

    Returns:
        float64 [C]; NaN for a class without a positive.
    """
    out = np.full(truth.shape[1], np.nan)
    for c in range(truth.shape[1]):
        values, hits = np.asarray(scores)[:, c].astype(np.float64), truth[:, c]
        if not hits.any():
            continue
        order = np.argsort(-values, kind="stable")
        values, found = values[order], hits[order].cumsum()
        last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # of equal scores
        precision, recall = found[last] / (last + 1), found[last] / found[-1]
        out[c] = (np.diff(recall, prepend=0.0) * precision).sum()
    return out

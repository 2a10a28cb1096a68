"""What a few images of a source tell about all of them: their sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nolabel.data.decoded import shrink
from nolabel.data.order import evenly_spaced
from nolabel.data.read_ahead import read_ahead
from nolabel.data.source import Source
from nolabel.errors import BadImage, none_readable

_SAMPLED = 15  # images, evenly spaced
_SHRUNK = 512 * 512  # pixels


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The sizes of some images of a source."""

    sides: tuple[int, ...]  # shorter side of each, pixels
    areas: tuple[int, ...]  # height x width of each
    item_bytes: int  # bytes of a pixel, over its channels
    seconds: float  # to read an image, by all threads together
    sample: tuple[np.ndarray, ...]  # the images, shrunk to at most 512 x 512 pixels

    @property
    def side(self) -> int:
        """Median of the shorter sides: an icon or a panorama that comes first does not decide."""
        return sorted(self.sides)[len(self.sides) // 2]


def facts_of(source: Source) -> Facts:
    """Reads a few images of a source, evenly spaced; of each a small copy is kept.

    Raises:
        DataError: none of them can be read.
    """

    def read(i: int) -> _Found | BadImage:
        try:
            image = source.read(i).image
        except BadImage as error:
            return error
        return _Found(image.shape, image.itemsize, shrink(image, _SHRUNK))

    count = 1 if source.in_memory else _SAMPLED
    began = time.perf_counter()
    drawn = sorted({int(i) for i in evenly_spaced(len(source), count)})
    found, bad = [], None
    for one in read_ahead(read, drawn, lambda f: 0 if isinstance(f, BadImage) else f.small.nbytes):
        if isinstance(one, BadImage):
            bad = bad or one
        else:
            found.append(one)
    if not found:
        raise none_readable(source.name, len(drawn), bad)
    seconds = (time.perf_counter() - began) / len(drawn)
    return Facts(
        sides=tuple(min(f.shape[:2]) for f in found),
        areas=tuple(f.shape[0] * f.shape[1] for f in found),
        item_bytes=max(f.item_bytes * f.shape[2] for f in found),
        seconds=0.0 if source.in_memory else seconds,
        sample=tuple(f.small for f in found),
    )


class _Found(NamedTuple):
    shape: tuple[int, ...]  # of the image, [H, W, C]
    item_bytes: int  # of a value
    small: np.ndarray

"""What a few images of a source tell about all of them: their sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from nolabel.data.decoded import shrink
from nolabel.data.order import evenly_spaced
from nolabel.data.read_ahead import read_images
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
    """Reads a few images of a source, evenly spaced.

    Raises:
        DataError: none of them can be read.
    """
    count = 1 if source.in_memory else _SAMPLED
    began = time.perf_counter()
    drawn = sorted({int(i) for i in evenly_spaced(len(source), count)})
    read = list(read_images(source, drawn))
    found = [image for image in read if isinstance(image, np.ndarray)]
    if not found:
        bad = next((b for b in read if isinstance(b, BadImage)), None)
        raise none_readable(source.name, len(drawn), bad)
    seconds = (time.perf_counter() - began) / len(drawn)
    return Facts(
        sides=tuple(min(image.shape[:2]) for image in found),
        areas=tuple(image.shape[0] * image.shape[1] for image in found),
        item_bytes=max(image.itemsize * image.shape[2] for image in found),
        seconds=0.0 if source.in_memory else seconds,
        sample=tuple(shrink(image, _SHRUNK) for image in found),
    )

"""What a few images of a source tell about all of them: their sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nolabel.data.read_ahead import read_images
from nolabel.data.source import Source
from nolabel.data.text.captions import evenly_spaced
from nolabel.errors import DataError

_SAMPLED = 15  # images, evenly spaced


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The sizes of some images of a source."""

    sides: tuple[int, ...]  # shorter side of each, pixels
    areas: tuple[int, ...]  # height x width of each
    item_bytes: int  # bytes of a pixel, over its channels

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
    found = [
        image
        for image in read_images(source, (int(i) for i in evenly_spaced(len(source), count)))
        if isinstance(image, np.ndarray)
    ]
    if not found:
        raise DataError(f"None of {count} images of {source.name} can be read. Check the files.")
    return Facts(
        sides=tuple(min(image.shape[:2]) for image in found),
        areas=tuple(image.shape[0] * image.shape[1] for image in found),
        item_bytes=max(image.itemsize * image.shape[2] for image in found),
    )

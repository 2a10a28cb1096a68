"""A source without data, to resolve runs for a given number and size of images."""

from __future__ import annotations

import numpy as np

from nolabel.data.source import Source
from nolabel.types import Sample


class Placeholder(Source):
    """Black images.

    Args:
        count: how many.
        size: side in pixels.
    """

    def __init__(self, count: int, size: int):
        self.name = f"{count:,} images of {size} px"
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, uint8 [size, size, 3]."""
        return Sample(image=np.zeros((self.size, self.size, self.channels), np.uint8))

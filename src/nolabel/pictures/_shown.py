"""Images for pictures, kept small: a hundred photographs of 24 megapixels would take 7 GB."""

from __future__ import annotations

import dataclasses

import numpy as np

from nolabel.data.decoded import shrink
from nolabel.data.source import Source
from nolabel.types import Sample

SHOWN_PIXELS = 2**21  # height x width of an image that is kept: three times what is ever drawn


def shown_sample(source: Source, i: int, image_size: int = 0) -> Sample:
    """An image of a source, shrunk if it is larger than pictures and network need.

    One with a mask, parts or keypoints keeps its size, on which they lie.

    Args:
        source: the images.
        i: index.
        image_size: side of the network's input in pixels.

    Raises:
        BadImage: it cannot be read.
    """
    sample = source.read(i)
    if any(part is not None for part in (sample.mask, sample.parts, sample.keypoints)):
        return sample
    most = max(SHOWN_PIXELS, 8 * image_size**2)
    return dataclasses.replace(sample, image=shrink(sample.image, most))


def shown_image(source: Source, i: int) -> np.ndarray:
    """As `shown_sample`, the image alone: uint8 or uint16 [H, W, C]."""
    return shrink(source.read(i).image, SHOWN_PIXELS)

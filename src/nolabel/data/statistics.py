"""Mean and standard deviation of the channels of a source."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nolabel.data.order import index_at
from nolabel.data.source import Source
from nolabel.errors import BadImage, none_readable

_BLOCK_PIXELS = 2**20
_MIN_STD = 1e-3  # avoids a division by zero for a constant channel


def measure_statistics(
    source: Source, images: int = 256
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with pixels scaled to 0..1.

    Args:
        source: images of C channels, uint8 or uint16.
        images: number of images to read, drawn at random; all their pixels have equal weight.

    Returns:
        C means and C standard deviations (at least 0.001), rounded to six digits.

    Raises:
        DataError: none of the images drawn can be read.
    """
    total, squares, count = 0.0, 0.0, 0
    bad = None
    n = len(source)
    for i in index_at(0, 0, np.arange(min(images, n)), n).tolist():
        try:
            pixels = source.read(i).image
        except BadImage as error:
            bad = bad or error
            continue
        counts = channel_counts(pixels)
        values = np.arange(counts.shape[1]) / (counts.shape[1] - 1)
        total, squares = total + counts @ values, squares + counts @ values**2
        count += pixels.shape[0] * pixels.shape[1]
    if not count:
        raise none_readable(source.name, min(images, n), bad)
    mean = np.asarray(total) / count
    std = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0))
    return (
        tuple(round(float(v), 6) for v in mean),
        tuple(round(max(float(v), _MIN_STD), 6) for v in std),
    )


def row_blocks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows of an image [H, W, C], of about a million pixels each."""
    rows = max(_BLOCK_PIXELS // pixels.shape[1], 1)
    for top in range(0, len(pixels), rows):
        yield pixels[top : top + rows]


def channel_counts(pixels: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel.

    Args:
        pixels: uint8 or uint16 [H, W, C].

    Returns:
        int64 [C, 256] or [C, 65536].
    """
    levels = int(np.iinfo(pixels.dtype).max) + 1
    out = np.zeros((pixels.shape[2], levels), np.int64)
    for block in row_blocks(pixels):  # bincount makes a copy of eight bytes a value
        for c in range(len(out)):
            out[c] += np.bincount(block[..., c].reshape(-1), minlength=levels)
    return out

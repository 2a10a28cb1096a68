"""Mean and standard deviation of the channels of a source."""

from __future__ import annotations

import numpy as np

from nolabel.data.order import index_at
from nolabel.data.source import Source
from nolabel.errors import BadImage, DataError

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
    n = len(source)
    for i in index_at(0, 0, np.arange(min(images, n)), n).tolist():
        try:
            pixels = source.read(i).image
        except BadImage:
            continue
        values = pixels.reshape(-1, pixels.shape[2]) / np.iinfo(pixels.dtype).max
        total, squares = total + values.sum(0), squares + np.square(values).sum(0)
        count += len(values)
    if not count:
        raise DataError(f"None of the images of {source.name!r} that were drawn can be read.")
    mean = np.asarray(total) / count
    std = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0))
    return (
        tuple(round(float(v), 6) for v in mean),
        tuple(round(max(float(v), _MIN_STD), 6) for v in std),
    )

"""Mean and deviation of the channels of a source."""

from __future__ import annotations

import numpy as np

from nolabel.data.order import index_at
from nolabel.data.source import Source
from nolabel.errors import BadImage, DataError

_LEAST = 1e-3  # a channel that never changes would otherwise be divided by zero


def measure_statistics(
    source: Source, images: int = 256
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with pixels in 0..1.

    Args:
        source: of images of one number of channels, 8 or 16 bits deep.
        images: how many are read, drawn at random; every pixel of them counts the same.

    Raises:
        DataError: None of them can be read.
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
        tuple(round(max(float(v), _LEAST), 6) for v in std),
    )

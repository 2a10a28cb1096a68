"""Keeps the images of a training run in memory once they are decoded (`--cache`).

An epoch of a small set would decode every file again, which can take longer than training. Here an
image is decoded when it is first needed, shrunk to what the views need, and copied into memory that
forked data workers share. The order of the images and the random draws of the views do not depend
on it, and neither does the position from which a run is resumed.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import threading
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from nolabel.data.source import Source, Subset
from nolabel.data.workers import FORKED, START
from nolabel.types import Sample
from nolabel.views.plan import ViewPlan

OFF = "off"
# How much smaller images may be kept if full quality does not fit; the sides relative to
# `ViewPlan.sufficient_pixels`. At 1/2 the smallest crop has as many pixels as its view.
_SHRINK = (1.0, 0.7, 0.5)
_DTYPES: tuple[type[np.generic], ...] = (np.uint8, np.uint16)
# Of each image: where it is, height, width and channels, and 1 + index of its dtype (0: not read).
_ENTRY = np.dtype([("offset", np.int64), ("shape", np.int32, 3), ("kind", np.int32)])
_LOCK_SECONDS = 1.0


def cache_pixels(
    plan: ViewPlan, areas: Sequence[int], images: int, memory: float, bytes_per_pixel: int
) -> int | None:
    """Pixels (height x width) at which images are kept in memory; None where they do not fit.

    The largest of three sizes that fits: that of `ViewPlan.sufficient_pixels`, at which the views
    are those of the full image within 0.8 levels of 255, and 0.7 and 0.5 of its sides. Images that
    are smaller are kept as they are, so that their views do not change at all.

    Args:
        plan: the views.
        areas: pixels of some images of the source.
        images: of the source.
        memory: bytes that may be used.
        bytes_per_pixel: of an image, over its channels.
    """
    sufficient = plan.sufficient_pixels or max(areas)
    for share in _SHRINK if plan.sufficient_pixels else (1.0,):
        pixels = max(math.ceil(sufficient * share**2), 1)
        if kept_bytes(pixels, areas, images, bytes_per_pixel) <= memory:
            return pixels
    return None


def kept_bytes(pixels: int, areas: Sequence[int], images: int, bytes_per_pixel: int) -> float:
    """Bytes that images take which are kept at most at so many pixels; see `cache_pixels`."""
    return sum(min(area, pixels) for area in areas) / len(areas) * images * bytes_per_pixel


class Decoded(Subset):
    """A source whose images are decoded once, shrunk to at most `pixels`, and kept in memory.

    Memory is taken when an image is first read; images that find no room are decoded each time.
    Processes that are forked later share it.

    Args:
        source: read once for each image.
        pixels: largest height x width that is kept.
        memory: bytes that the images may take.
    """

    def __init__(self, source: Source, pixels: int, memory: int):
        n = len(source)
        super().__init__(source, np.arange(n))
        self.block, self.root, self.notes = source.block, source.root, source.notes
        self._pixels = pixels
        # Anonymous shared memory, not a file of /dev/shm, which containers limit to 64 MB. The
        # system provides its pages when they are first written.
        self._memory = mmap.mmap(-1, max(memory, 1))
        table = mmap.mmap(-1, (n + 1) * _ENTRY.itemsize)
        self._table = np.frombuffer(table, _ENTRY)  # the last entry's offset: bytes taken
        self._lock = multiprocessing.get_context(START).Lock() if FORKED else threading.Lock()

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, shrunk to at most `pixels`. Raises BadImage."""
        entry = self._table[i]
        if kind := int(entry["kind"]):
            shape = entry["shape"].tolist()
            image = np.frombuffer(
                self._memory, _DTYPES[kind - 1], math.prod(shape), offset=int(entry["offset"])
            ).reshape(shape)
            return Sample(image=image, label=self.label(i), text=self.source.read_text(i))
        sample = super().read(i, sufficient_pixels=self._pixels if self.supports_draft else None)
        image = np.ascontiguousarray(shrink(sample.image, self._pixels))
        if image.dtype.type in _DTYPES and (offset := self._reserve(image.nbytes)) is not None:
            place = np.frombuffer(self._memory, np.uint8, image.nbytes, offset=offset)
            place[:] = image.reshape(-1).view(np.uint8)
            entry["offset"], entry["shape"] = offset, image.shape
            entry["kind"] = 1 + _DTYPES.index(image.dtype.type)  # last: others may read it now
        return Sample(image=image, label=self.label(i), text=sample.text)

    def holds(self, indices: np.ndarray) -> bool:
        """Whether all these images, int [B], are in memory."""
        return bool(self._table["kind"][indices].all())

    def _reserve(self, size: int) -> int | None:
        """Where `size` bytes can be written; None if there is no room.

        A worker that is killed while it holds the lock ends the caching, not the run.
        """
        if not self._lock.acquire(timeout=_LOCK_SECONDS):
            return None
        try:
            offset = int(self._table[-1]["offset"])
            if offset + size > len(self._memory):
                return None
            self._table[-1]["offset"] = offset + size + (size & 1)  # 16-bit values stay aligned
            return offset
        finally:
            self._lock.release()


def enough_pixels(image_size: int) -> int:
    """Height x width of an image that is to be resized to a square of `image_size` pixels.

    Twice its side is enough for a clean resize, twice the area for images that are no squares.
    """
    return 2 * (2 * image_size) ** 2


def shrink(image: np.ndarray, pixels: int) -> np.ndarray:
    """The image with at most about `pixels` (height x width), antialiased; smaller ones unchanged.

    Args:
        image: uint8 or uint16 [H, W, C].
        pixels: height x width that suffice.
    """
    height, width = image.shape[:2]
    if height * width <= pixels:
        return image
    factor = math.sqrt(pixels / (height * width))
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    values = image if image.dtype == np.uint8 else image.astype(np.float32)
    planes = torch.from_numpy(np.ascontiguousarray(values))[None].permute(0, 3, 1, 2)
    small = F.interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    array = small.contiguous().numpy()
    return array if image.dtype == np.uint8 else array.round().astype(image.dtype)


def decoded_once(source: Source, pixels: int | str, memory: float, *, workers: int = 0) -> Source:
    """The source, with its images kept in memory unless `pixels` is "off".

    Args:
        source: of a training run.
        pixels: the setting `cache` of a resolved run.
        memory: bytes that the images may take.
        workers: processes that read it; where they are not forked they cannot share memory, and
            the source is returned as it is.
    """
    if (
        isinstance(source, Decoded)
        or isinstance(pixels, str)
        or source.in_memory
        or (workers and not FORKED)
    ):
        return source
    return Decoded(source, pixels, int(memory))

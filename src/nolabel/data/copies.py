"""Equal images: files listed twice, links, and copies of a file under another name.

An image that is in train and in test is recognised rather than classified. Files are compared
without decoding: first by size, then by their last bytes, at last as a whole, so that few are read
completely. Images in memory are compared by their pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nolabel.data.source import Source
from nolabel.errors import BadImage

_END = 4096  # bytes at the end of a file, which differ in most files of one size
_THREADS = 8
_CHUNK = 1024  # images in memory whose pixels are taken at once

Place = tuple[Source, int]  # an image: its source and its index there


def number_equal_images(*sources: Source) -> tuple[np.ndarray, ...]:
    """Numbers images so that equal ones have the same number, over all sources.

    Args:
        *sources: any sources. Images of one that neither has files nor is in memory count as
            distinct; so do files that cannot be read.

    Returns:
        For each source int64 [N].
    """
    keys: list[object] = []  # None: equal to no other image
    files: dict[int, Place] = {}  # position in `keys` -> a file that may be equal to another
    for source in sources:
        if source.in_memory:
            keys += _pixel_digests(source)
            continue
        if source.has_files:
            files |= {len(keys) + i: (source, i) for i in range(len(source))}
        keys += [None] * len(source)
    with ThreadPoolExecutor(_THREADS, "nolabel-compare") as pool:
        for compared in (_size, _end, _whole):
            found = list(pool.map(_guarded(compared), files.values()))
            for n, key in zip(files, found, strict=True):
                keys[n] = None if key is None else (keys[n], key)
            counts = Counter(keys[n] for n in files)
            files = {n: p for n, p in files.items() if keys[n] and counts[keys[n]] > 1}
    numbers: dict[object, int] = {}
    flat = [n if key is None else numbers.setdefault(key, n) for n, key in enumerate(keys)]
    ends = np.cumsum([len(source) for source in sources])[:-1]
    return tuple(np.split(np.array(flat, np.int64), ends))


def _size(place: Place) -> object:
    return place[0].size_in_bytes(place[1])


def _end(place: Place) -> object:
    return hashlib.sha256(place[0].read_end(place[1], _END)).digest()


def _whole(place: Place) -> object:
    return hashlib.sha256(place[0].read_bytes(place[1])).digest()


def _guarded(compared: Callable[[Place], object]) -> Callable[[Place], object]:
    """The function with None in place of an error."""

    def value(place: Place) -> object:
        try:
            return compared(place)
        except (OSError, ValueError, BadImage):  # ValueError: a path with a null byte
            return None

    return value


def _pixel_digests(source: Source) -> Iterator[bytes]:
    for start in range(0, len(source), _CHUNK):
        for image in source.images(np.arange(start, min(start + _CHUNK, len(source)))):
            yield hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()

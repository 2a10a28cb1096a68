"""Reads the images of a source in order, in threads, with a bound on the memory of decoded images.

Bounding the number of images would not do: 256 icons take a megabyte, 256 photographs 18 GB.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from nolabel.data.source import Source
from nolabel.data.sources._decode import decoding_in_threads
from nolabel.device import cpu_cores
from nolabel.errors import BadImage

MAX_BYTES = 192 * 2**20  # of decoded images that wait for the caller
_MAX_THREADS = 8  # they decode files
T = TypeVar("T")
_AHEAD = 512  # images that are submitted before the caller needs them


def read_ahead(
    read: Callable[[int], T],
    indices: Iterable[int],
    size: Callable[[T], int],
    *,
    max_bytes: int = MAX_BYTES,
) -> Generator[T, None, None]:
    """Yields `read(i)` for each index, in order; threads work ahead of the caller.

    Results that wait take at most `max_bytes` together, and one more for each thread.

    Args:
        read: called in threads.
        indices: what to read, in this order.
        size: bytes of a result.
        max_bytes: bound of the memory of results that wait.

    Raises:
        Exception: whatever `read` raises, when its turn comes.
    """
    budget = _Budget(max_bytes)

    def work(turn: int, index: int) -> tuple[T, int]:
        result = read(index)
        bytes_taken = size(result)
        budget.take(turn, bytes_taken)
        return result, bytes_taken

    remaining = enumerate(indices)
    pending: deque[Future[tuple[T, int]]] = deque()
    threads = min(_MAX_THREADS, cpu_cores())
    with decoding_in_threads(), ThreadPoolExecutor(threads, "nolabel-read") as pool:
        try:
            while True:
                while len(pending) < _AHEAD and (item := next(remaining, None)) is not None:
                    pending.append(pool.submit(work, *item))
                if not pending:
                    return
                result, bytes_taken = pending.popleft().result()
                budget.give_back(bytes_taken)
                yield result
                del result
        finally:
            budget.close()
            pool.shutdown(wait=True, cancel_futures=True)


class _Budget:
    """Makes the threads wait while the results that nobody has taken exceed a number of bytes."""

    def __init__(self, limit: int):
        self._limit, self._used, self._next, self._closed = limit, 0, 0, False
        self._changed = threading.Condition()

    def take(self, turn: int, size: int) -> None:
        """Waits until `size` bytes are free; the result whose turn it is never waits."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or turn == self._next or self._used + size <= self._limit
            )
            self._used += size

    def give_back(self, size: int) -> None:
        """The result whose turn it was has left the queue."""
        with self._changed:
            self._used -= size
            self._next += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def read_images(
    source: Source, indices: Iterable[int]
) -> Generator[np.ndarray | BadImage, None, None]:
    """Yields images of a source in the order of `indices`, or the error of one that is unreadable.

    Yields:
        uint8 or uint16 [H, W, C], or the BadImage that reading raised.
    """

    def read(i: int) -> np.ndarray | BadImage:
        try:
            return source.read(i).image
        except BadImage as error:
            return error

    return read_ahead(read, indices, lambda r: 0 if isinstance(r, BadImage) else r.nbytes)

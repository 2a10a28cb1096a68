"""Frozen features of a whole source: one pass, in the source's order, bad files left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.data.sources._decode import decoding_in_threads
from nolabel.encoders.encoder import Encoder
from nolabel.errors import BadImage, DataError, UsageError

_READERS = 8  # threads that decode files, at most


@dataclass(frozen=True)
class Features:
    """What `extract` returns, without the images that could not be read."""

    values: Tensor  # float32 [N, D] on the CPU
    labels: Tensor | None  # int64 [N] on the CPU
    skipped: tuple[tuple[str, str], ...]  # (path, reason)
    keys: Tensor  # int64 [N]: index of each image in its source, ascending


@dataclass(frozen=True)
class Chunk:
    """A batch of images, and those of them that could not be read."""

    keys: np.ndarray  # int64 [B]
    images: np.ndarray | list[np.ndarray]  # uint8 [B, H, W, 3], or B of [H, W, 3]
    skipped: list[tuple[str, str]]


def extract(
    encoder: Encoder, source: Source, *, batch_size: int = 256, progress: bool = True
) -> Features:
    """Embeds every image of a source, in full precision.

    Args:
        encoder: does the work on its own device.
        source: the images. Those that cannot be read are left out and listed.
        batch_size: images at once.
        progress: whether to show a bar; only ever done when stderr is a terminal.

    Raises:
        UsageError: a batch size below 1.
        DataError: no image could be read.
    """
    if batch_size < 1:
        raise UsageError(f"The batch size must be at least 1, got {batch_size}.")
    values: list[Tensor] = []
    keys: list[np.ndarray] = []
    skipped: list[tuple[str, str]] = []
    with progress_bar(f"{encoder.name} on {source.name}", len(source), progress) as advance:
        for chunk, own in embedded(encoder, source, batch_size):
            skipped += chunk.skipped
            if own is not None:
                values.append(own)
                keys.append(chunk.keys)
            advance(len(chunk.keys) + len(chunk.skipped))
    if not values:
        first = f"  First: {skipped[0][0]}: {skipped[0][1]}." if skipped else ""
        raise DataError(f"{source.name!r} has no image that can be read.{first}")
    kept = np.concatenate(keys)
    labels = None if source.labels is None else torch.from_numpy(source.labels[kept].astype("i8"))
    return Features(torch.cat(values), labels, tuple(skipped), torch.from_numpy(kept))


def embedded(
    encoder: Encoder, source: Source, batch_size: int
) -> Iterator[tuple[Chunk, Tensor | None]]:
    """The images batch by batch with their features float32 [B, D] on the CPU, None without any."""
    for chunk in chunks(source, batch_size):
        good = len(chunk.keys) > 0
        yield chunk, encoder.forward(encoder.prepare_pixels(chunk.images)) if good else None


def chunks(source: Source, batch_size: int) -> Iterator[Chunk]:
    """The images, batch by batch; files are decoded while the batch before is embedded."""
    starts = range(0, len(source), batch_size)
    if source.in_memory:
        for start in starts:
            keys = np.arange(start, min(start + batch_size, len(source)))
            yield Chunk(keys, source.images(keys), [])
        return
    readers = min(_READERS, os.cpu_count() or 1)
    with decoding_in_threads(), ThreadPoolExecutor(readers, "nolabel-read") as pool:
        waiting: list[list[Future[np.ndarray | BadImage]]] = []

        def submit(start: int) -> None:
            some = range(start, min(start + batch_size, len(source)))
            waiting.append([pool.submit(_read, source, i) for i in some])

        try:
            for start in starts[:1]:
                submit(start)
            for start in starts:
                if start + batch_size < len(source):
                    submit(start + batch_size)
                done = [f.result() for f in waiting.pop(0)]
                good = [i for i, d in enumerate(done) if not isinstance(d, BadImage)]
                pixels = [d for d in done if not isinstance(d, BadImage)]
                bad = [(d.path, d.reason) for d in done if isinstance(d, BadImage)]
                yield Chunk(start + np.array(good, dtype=np.int64), pixels, bad)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(source: Source, i: int) -> np.ndarray | BadImage:
    try:
        return source.read(i).image
    except BadImage as error:
        return error

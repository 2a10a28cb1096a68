"""Frozen features of a source: one pass in its order; images that cannot be read are skipped."""

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

_READER_THREADS = 8  # at most; they decode files


@dataclass(frozen=True)
class Features:
    """Features of the images that could be read.

    Attributes:
        values: float32 [N, D] on the CPU.
        labels: int64 [N] on the CPU, or None.
        skipped: (path, reason) of each image that could not be read.
        keys: int64 [N] on the CPU, index of each image in its source, ascending.
    """

    values: Tensor
    labels: Tensor | None
    skipped: tuple[tuple[str, str], ...]
    keys: Tensor


@dataclass(frozen=True)
class Chunk:
    """A batch of decoded images.

    Attributes:
        keys: int64 [B], index of each image in its source.
        images: uint8 [B, H, W, C], or B arrays uint8 [H, W, C].
        skipped: (path, reason) of each image of the batch that could not be read.
    """

    keys: np.ndarray
    images: np.ndarray | list[np.ndarray]
    skipped: list[tuple[str, str]]


def extract(
    encoder: Encoder, source: Source, *, batch_size: int = 256, progress: bool = True
) -> Features:
    """Embeds every image of a source at the encoder's precision.

    Args:
        encoder: the encoder, used on its own device.
        source: the images. Those that cannot be read are left out and listed in `skipped`.
        batch_size: images in a forward pass.
        progress: whether to show a progress bar; it is only shown if stderr is a terminal.

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
        for chunk, features in embed_chunks(encoder, source, batch_size):
            skipped += chunk.skipped
            if features is not None:
                values.append(features)
                keys.append(chunk.keys)
            advance(len(chunk.keys) + len(chunk.skipped))
    if not values:
        first = f" First: {skipped[0][0]}: {skipped[0][1]}." if skipped else ""
        raise DataError(f"{source.name!r} has no image that can be read.{first}")
    indices = np.concatenate(keys)
    labels = (
        None if source.labels is None else torch.from_numpy(source.labels[indices].astype("i8"))
    )
    return Features(torch.cat(values), labels, tuple(skipped), torch.from_numpy(indices))


def embed_chunks(
    encoder: Encoder, source: Source, batch_size: int
) -> Iterator[tuple[Chunk, Tensor | None]]:
    """Yields each batch of a source with its features.

    Args:
        encoder: the encoder, used on its own device.
        source: the images.
        batch_size: images in a forward pass.

    Yields:
        The batch, and its features float32 [B, D] on the CPU (None if no image could be read).
    """
    for chunk in chunks(source, batch_size):
        readable = len(chunk.keys) > 0
        yield chunk, encoder.forward(encoder.prepare_pixels(chunk.images)) if readable else None


def chunks(source: Source, batch_size: int) -> Iterator[Chunk]:
    """Yields a source in batches; files are decoded in threads, one batch ahead of the caller.

    Args:
        source: the images.
        batch_size: images in a batch.
    """
    starts = range(0, len(source), batch_size)
    if source.in_memory:
        for start in starts:
            keys = np.arange(start, min(start + batch_size, len(source)))
            yield Chunk(keys, source.images(keys), [])
        return
    readers = min(_READER_THREADS, os.cpu_count() or 1)
    with decoding_in_threads(), ThreadPoolExecutor(readers, "nolabel-read") as pool:
        pending: list[list[Future[np.ndarray | BadImage]]] = []

        def submit(start: int) -> None:
            indices = range(start, min(start + batch_size, len(source)))
            pending.append([pool.submit(_read, source, i) for i in indices])

        try:
            for start in starts[:1]:
                submit(start)
            for start in starts:
                if start + batch_size < len(source):
                    submit(start + batch_size)
                results = [f.result() for f in pending.pop(0)]
                readable = [i for i, r in enumerate(results) if not isinstance(r, BadImage)]
                pixels = [r for r in results if not isinstance(r, BadImage)]
                skipped = [(r.path, r.reason) for r in results if isinstance(r, BadImage)]
                yield Chunk(start + np.array(readable, dtype=np.int64), pixels, skipped)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(source: Source, i: int) -> np.ndarray | BadImage:
    try:
        return source.read(i).image
    except BadImage as error:
        return error

"""Frozen features of a source: one pass in its order; images that cannot be read are skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nolabel.data.progress import progress_bar
from nolabel.data.read_ahead import read_images
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.errors import BadImage, DataError, UsageError

_GROUP_BYTES = 64 * 2**20  # of decoded images that are prepared at once


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
    """A batch of images that are ready for the network.

    Attributes:
        keys: int64 [B], index of each image in its source.
        x: the images as `prepare` returned them, a tensor [B, ...]; None if none could be read.
        skipped: (path, reason) of each image of the batch that could not be read.
    """

    keys: np.ndarray
    x: Tensor | None
    skipped: list[tuple[str, str]]


Images = np.ndarray | list[np.ndarray]
Prepare = Callable[[Images, np.ndarray], Tensor]


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
    for chunk in chunks(source, batch_size, encoder_input(encoder)):
        yield chunk, None if chunk.x is None else encoder.forward(chunk.x)


def encoder_input(encoder: Encoder) -> Prepare:
    """The usual `prepare` of `chunks`: resized, cropped and normalised, float32 [B, C, S, S]."""
    return lambda images, keys: encoder.prepare_pixels(images)


def chunks(source: Source, batch_size: int, prepare: Prepare) -> Iterator[Chunk]:
    """Yields a source in batches of prepared images.

    Files are decoded in threads, ahead of the caller. Decoded images are prepared as soon as
    they take `_GROUP_BYTES`, so that a batch of photographs is never in memory as a whole.

    Args:
        source: the images.
        batch_size: images in a batch.
        prepare: makes a tensor [b, ...] of b decoded images (uint8 or uint16 [b, H, W, C], or b of
            [H, W, C]) and their indices int64 [b]. An image's result must not depend on the others.
    """
    starts = range(0, len(source), batch_size)
    if source.in_memory:
        for start in starts:
            keys = np.arange(start, min(start + batch_size, len(source)))
            yield Chunk(keys, prepare(source.images(keys), keys), [])
        return
    images = read_images(source, range(len(source)))
    with contextlib.closing(images):
        for start in starts:
            yield _chunk(images, range(start, min(start + batch_size, len(source))), prepare)


def _chunk(images: Iterator[np.ndarray | BadImage], indices: range, prepare: Prepare) -> Chunk:
    """The next batch of decoded images, prepared in groups of bounded size."""
    parts: list[Tensor] = []
    keys: list[int] = []
    skipped: list[tuple[str, str]] = []
    group: list[np.ndarray] = []
    group_bytes = 0

    def prepare_group() -> None:
        parts.append(prepare(group, np.array(keys[len(keys) - len(group) :], dtype=np.int64)))
        group.clear()

    for i in indices:
        image = next(images)
        if isinstance(image, BadImage):
            skipped.append((image.path, image.reason))
            continue
        group.append(image)
        keys.append(i)
        group_bytes += image.nbytes
        del image
        if group_bytes >= _GROUP_BYTES:
            prepare_group()
            group_bytes = 0
    if group:
        prepare_group()
    x = None if not parts else parts[0] if len(parts) == 1 else torch.cat(parts)
    return Chunk(np.array(keys, dtype=np.int64), x, skipped)

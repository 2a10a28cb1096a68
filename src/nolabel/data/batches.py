"""The dataset of training batches: picks the images of a step, decodes them and makes their views.

One item of the dataset is one rank's micro-batch of one step; a data worker makes it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from nolabel.data.blocks import block_index_at
from nolabel.data.decoded import Decoded
from nolabel.data.order import batch_indices, replacement, steps_per_epoch
from nolabel.data.read_ahead import read_ahead
from nolabel.data.source import Source
from nolabel.data.text.captions import require_texts, texts_of
from nolabel.errors import BadImage, DataError, UsageError, printable
from nolabel.types import Batch, Sample
from nolabel.views.executor import Executor
from nolabel.views.plan import ViewPlan

_GROUP_BYTES = 256 * 2**20  # of decoded images whose views are made at once
_Read = tuple[Sample, int, list[tuple[str, str]]]
ATTEMPTS = 10  # replacements to try for one unreadable image


@dataclass(frozen=True)
class DecodedBatch:
    """The decoded images of one micro-batch, before any view is made.

    Attributes:
        images: uint8 [B, H, W, C], or B of uint8 or uint16 [H_i, W_i, C].
        scheduled: int64 [B]: index of the image at this position of the epoch; it keys the random
            draw of the views.
        keys: int64 [B]: index of the image that was read; differs from `scheduled` where an
            unreadable image was replaced.
        epoch: 0-based epoch.
        skipped: path and reason of each image that could not be read.
        texts: texts of the images that were read; None unless the dataset has `with_text`.
    """

    images: np.ndarray | list[np.ndarray]
    scheduled: np.ndarray
    keys: np.ndarray
    epoch: int
    skipped: tuple[tuple[str, str], ...]
    texts: tuple[str, ...] | None = None


class ReadKwargs(TypedDict, total=False):
    """Keyword arguments of `Source.read`."""

    sufficient_pixels: int


def read_kwargs(source: Source, plan: ViewPlan | None) -> ReadKwargs:
    """Keyword arguments for `source.read`: small views do not need images decoded at full size.

    Args:
        source: the source to read from.
        plan: the views to make; None reads at full size.
    """
    pixels = plan.sufficient_pixels if plan is not None and source.supports_draft else None
    return {"sufficient_pixels": pixels} if pixels else {}


class BatchDataset(Dataset[Batch]):
    """Item (step, micro) is a batch: one rank's micro-batch `micro` of the global batch at `step`.

    The global batch of `batch_size` images is divided into `world` contiguous parts, one per rank,
    and each part into `accumulate` contiguous micro-batches (gradient accumulation).

    Args:
        source: where the images come from.
        executor: makes the views.
        seed: seed of the order of images.
        batch_size: images in the global batch.
        accumulate: micro-batches per rank and step (gradient accumulation).
        rank: rank of this process, in [0, world).
        world: number of processes.
        with_labels: whether batches carry labels; off by default, so that a self-supervised
            method never receives labels by mistake.
        with_text: whether batches carry texts. An image without one is treated as unreadable.

    Raises:
        UsageError: the batch is larger than the data set or cannot be divided evenly; or
            `with_labels` and the source has no labels.
        DataError: `with_text` and the source has no texts.
    """

    def __init__(
        self,
        source: Source,
        executor: Executor,
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        with_labels: bool = False,
        with_text: bool = False,
    ):
        parts = world * accumulate
        _check_batch(source, batch_size, parts)
        if not 0 <= rank < world:
            raise UsageError(f"Rank {rank} does not exist among {world} processes.")
        if with_labels and source.labels is None:
            raise UsageError(f"{source.name!r} has no labels to put into the batches.")
        if with_text:
            require_texts(source)
        self.source = source
        self.executor = executor
        self.seed = seed
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.first_part = rank * accumulate
        self.part_size = batch_size // parts
        self.with_labels, self.with_text = with_labels, with_text
        self._read_kwargs = read_kwargs(source, executor.plan)

    @property
    def steps_per_epoch(self) -> int:
        """Complete global batches in an epoch."""
        return steps_per_epoch(self.batch_size, len(self.source))

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        """The batch of (step, micro).

        Raises:
            DataError: too many images in a row cannot be read.
        """
        if self.source.in_memory:
            return self.make_views(self.decode(*item))
        epoch, scheduled = self._micro_batch(*item)
        groups = self._decode_groups(epoch, scheduled, _GROUP_BYTES)
        return _joined([self.make_views(group) for group in groups])

    def decode(self, step: int, micro: int) -> DecodedBatch:
        """Reads and decodes the images of micro-batch `micro` of a step.

        Raises:
            DataError: too many images in a row cannot be read.
        """
        epoch, scheduled = self._micro_batch(step, micro)
        if self.source.in_memory:
            return DecodedBatch(
                self.source.images(scheduled),
                scheduled,
                scheduled,
                epoch,
                (),
                self._texts(scheduled),
            )
        return next(self._decode_groups(epoch, scheduled, sys.maxsize))

    def _decode_groups(
        self, epoch: int, scheduled: np.ndarray, max_bytes: int
    ) -> Iterator[DecodedBatch]:
        """Decodes images one by one and yields them whenever they take `max_bytes`.

        The views of an image do not depend on the others, so that a batch of photographs can be
        made in groups, never decoded as a whole.
        """
        first = size = 0
        images: list[np.ndarray] = []
        texts: list[str] = []
        keys: list[int] = []
        skipped: list[tuple[str, str]] = []
        for row, (sample, key, unreadable) in enumerate(self._read_all(scheduled, epoch)):
            skipped.extend(unreadable)
            images.append(sample.image)
            texts.append(sample.text or "")
            keys.append(key)
            size += sample.image.nbytes
            if size >= max_bytes or row == len(scheduled) - 1:
                yield DecodedBatch(
                    images, scheduled[first : row + 1], np.array(keys, dtype=scheduled.dtype),
                    epoch, tuple(skipped), tuple(texts) if self.with_text else None,
                )  # fmt: skip
                first, size, images, texts, keys, skipped = row + 1, 0, [], [], [], []

    def make_views(self, decoded: DecodedBatch) -> Batch:
        """Makes the views of decoded images."""
        labels = None
        if self.with_labels and self.source.labels is not None:
            labels = torch.from_numpy(self.source.labels[decoded.keys].astype(np.int64))
        return Batch(
            views=self.executor(decoded.images, decoded.scheduled, decoded.epoch),
            keys=torch.from_numpy(decoded.keys),
            labels=labels,
            text=decoded.texts,
            skipped=decoded.skipped,
        )

    def _texts(self, keys: np.ndarray) -> tuple[str, ...] | None:
        """Texts of an in-memory batch, None without `with_text`.

        Raises:
            DataError: an image has no text.
        """
        if not self.with_text:
            return None
        texts = texts_of(self.source, keys)
        for text, key in zip(texts, keys.tolist(), strict=True):
            if not text:
                raise DataError(
                    f"{printable(self.source.path(key))} has no text, which this method needs."
                )
        return tuple(text or "" for text in texts)

    def _micro_batch(self, step: int, micro: int) -> tuple[int, np.ndarray]:
        """Epoch of a step and the images of this rank's micro-batch, int64 [part_size]."""
        epoch, scheduled = self._global_batch(step)
        first = (self.first_part + micro) * self.part_size
        return epoch, scheduled[first : first + self.part_size]

    def _global_batch(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch of a step and the images of its global batch, int64 [batch_size]."""
        n, block = len(self.source), self.source.block
        if not block:
            return batch_indices(self.seed, step, self.batch_size, n)
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        return epoch, block_index_at(
            self.seed, epoch, np.arange(first, first + self.batch_size), n, block
        )

    def _read_all(self, scheduled: np.ndarray, epoch: int) -> Iterator[_Read]:
        """Reads the images: files in threads, unless a data worker does it, of which there are
        many. A user's own source is never read by two threads at once."""
        indices = scheduled.tolist()
        decoded = isinstance(self.source, Decoded) and self.source.holds(scheduled)
        if get_worker_info() is not None or decoded or not self.source.has_files:
            yield from (self._read(index, epoch) for index in indices)
            return
        yield from read_ahead(
            lambda index: self._read(index, epoch), indices, lambda r: r[0].image.nbytes
        )

    def _read(self, index: int, epoch: int) -> _Read:
        """The image at `index` or its replacement, the index of the image that was read, and the
        path and reason of each image that could not be read."""
        candidate, skipped = index, list[tuple[str, str]]()
        for attempt in range(ATTEMPTS + 1):
            try:
                sample = self.source.read(candidate, **self._read_kwargs)
                if sample.text or not self.with_text:
                    return sample, candidate, skipped
                raise BadImage(self.source.path(candidate), "has no text")
            except BadImage as error:
                skipped.append((printable(error.path), error.reason))
            candidate = replacement(self.seed, epoch, index, attempt, len(self.source))
        path, reason = skipped[-1]
        raise DataError(
            f"{self.source.name!r}: {ATTEMPTS + 1} images in a row could not be read, the last "
            f"being {path} ({reason}). `nolabel scan` lists every unreadable file."
        )


def _joined(parts: list[Batch]) -> Batch:
    """One batch of several, in their order."""
    if len(parts) == 1:
        return parts[0]
    labels = [p.labels for p in parts if p.labels is not None]
    texts = [p.text for p in parts if p.text is not None]
    return Batch(
        views={n: torch.cat([p.views[n] for p in parts], 1) for n in parts[0].views},
        keys=torch.cat([p.keys for p in parts if p.keys is not None]),
        labels=torch.cat(labels) if labels else None,
        text=tuple(itertools.chain.from_iterable(texts)) if texts else None,
        skipped=tuple(itertools.chain.from_iterable(p.skipped for p in parts)),
    )


def _check_batch(source: Source, batch_size: int, parts: int) -> None:
    n = len(source)
    if batch_size < 1 or parts < 1:
        raise UsageError(f"The batch size must be at least 1, got {batch_size}.")
    if batch_size > n:
        largest = n // parts * parts
        raise UsageError(
            f"A batch of {batch_size} is larger than the data: {source.name!r} has {n} "
            f"image{'s' * (n != 1)}. "
            + (f"The largest batch possible is {largest}." if largest else "Use more images.")
        )
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        near = " or ".join(str(size) for size in (below, above) if 0 < size <= n)
        raise UsageError(
            f"A batch of {batch_size} cannot be cut into {parts} equal parts (processes x "
            f"gradient accumulation). {f'Use {near}.' if near else 'Use fewer parts.'}"
        )

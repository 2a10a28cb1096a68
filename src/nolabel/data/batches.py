"""The images of a step, and their views: what a worker does for one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nolabel.data.blocks import block_index_at
from nolabel.data.open import Source, fast_images
from nolabel.data.order import batch_indices, replacement, steps_per_epoch
from nolabel.data.text.captions import require_texts, texts_of
from nolabel.errors import BadImage, DataError, UsageError, printable
from nolabel.types import Batch, Sample
from nolabel.views.plan import ViewPlan

ATTEMPTS = 10  # stand-ins tried for one unreadable image


class Executor(Protocol):
    """Makes the views of a batch (see `nolabel.views`)."""

    def __call__(self, images: Any, keys: np.ndarray, epoch: int, /) -> dict[str, Tensor]:
        """name -> float32 [V, B, C, H, W] from uint8 [B, H, W, 3] or a list of [H, W, 3]."""
        ...


@dataclass(frozen=True)
class Raw:
    """The decoded images of one micro-batch, before any view is made."""

    images: np.ndarray | list[np.ndarray]  # uint8 [B, H, W, 3], or B of uint8 [H, W, 3]
    places: np.ndarray  # int64 [B]: the image that was due; randomness is keyed by it
    keys: np.ndarray  # int64 [B]: the image that is there; differs where one was replaced
    epoch: int
    skipped: tuple[tuple[str, str], ...]  # (path, reason)
    texts: tuple[str, ...] | None = None  # of the images that are there


def how_to_read(source: Source, plan: ViewPlan | None) -> dict[str, int]:
    """Arguments of the source's `read`: photographs need not be decoded whole for small views."""
    enough = plan.enough if plan is not None and getattr(source, "reduces", False) else None
    return {"enough": enough} if enough else {}


class StepDataset(Dataset[Batch]):
    """Item (step, micro) is a batch: one rank's part `micro` of the global batch at `step`.

    The global batch of `batch_size` images is cut into `world` contiguous parts, one a rank, and
    each of those into `accumulate` contiguous micro-batches.

    Args:
        source: Where the images come from.
        executor: Makes the views.
        seed: Seed of the order of images.
        batch_size: Images in the global batch.
        accumulate: Micro-batches in a rank's part of one step.
        rank: This process, in [0, world).
        world: Number of processes.
        with_labels: Whether batches carry labels.  They do not unless asked: what learns without
            labels cannot then be given them by mistake.
        with_text: Whether batches carry texts.  An image without one counts as unreadable.

    Raises:
        UsageError: The batch is larger than the data or cannot be cut evenly; or labels are
            asked of a source that has none.
        DataError: Texts are asked of a source that has none.
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
        self._images = fast_images(source)
        self._how = how_to_read(source, getattr(executor, "plan", None))

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return steps_per_epoch(self.batch_size, len(self.source))

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        """The batch of (step, micro).  Raises DataError when the source is full of bad files."""
        return self.finish(self.gather(*item))

    def gather(self, step: int, micro: int) -> Raw:
        """Reads the images of (step, micro)."""
        epoch, due = self._due(step)
        first = (self.first_part + micro) * self.part_size
        due = due[first : first + self.part_size]
        if self._images is not None:
            return Raw(self._images(due), due, due, epoch, (), self._texts(due))
        images, texts, keys = [], [], due.copy()
        skipped: list[tuple[str, str]] = []
        for place, index in enumerate(due.tolist()):
            sample, keys[place] = self._read(index, epoch, skipped)
            images.append(sample.image)
            texts.append(sample.text or "")
        return Raw(
            images, due, keys, epoch, tuple(skipped), tuple(texts) if self.with_text else None
        )

    def _texts(self, keys: np.ndarray) -> tuple[str, ...] | None:
        """Texts of images that were read together."""
        if not self.with_text:
            return None
        texts = texts_of(self.source, keys)
        for text, key in zip(texts, keys.tolist(), strict=True):
            if not text:
                raise DataError(f"{self.source.path(key)} has no text, which this method needs.")
        return tuple(text or "" for text in texts)

    def _due(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch and images, int64 [batch_size], of a global batch; in blocks for shards."""
        n, block = len(self.source), int(getattr(self.source, "block", 0))
        if not block:
            return batch_indices(self.seed, step, self.batch_size, n)
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        return epoch, block_index_at(
            self.seed, epoch, np.arange(first, first + self.batch_size), n, block
        )

    def finish(self, raw: Raw) -> Batch:
        """Makes the views of decoded images."""
        labels = None
        if self.with_labels and self.source.labels is not None:
            labels = torch.from_numpy(self.source.labels[raw.keys].astype(np.int64))
        return Batch(
            views=self.executor(raw.images, raw.places, raw.epoch),
            keys=torch.from_numpy(raw.keys),
            labels=labels,
            text=raw.texts,
            skipped=raw.skipped,
        )

    def _read(self, index: int, epoch: int, skipped: list[tuple[str, str]]) -> tuple[Sample, int]:
        """The image at `index` or a stand-in, and the index of what was read."""
        candidate = index
        for attempt in range(ATTEMPTS + 1):
            try:
                sample = self.source.read(candidate, **self._how)
                if sample.text or not self.with_text:
                    return sample, candidate
                raise BadImage(self.source.path(candidate), "has no text")
            except BadImage as error:
                skipped.append((printable(error.path), error.reason))
            candidate = replacement(self.seed, epoch, index, attempt, len(self.source))
        path, reason = skipped[-1]
        raise DataError(
            f"{self.source.name!r}: {ATTEMPTS + 1} images in a row could not be read, the last "
            f"being {path} ({reason}).  `nolabel scan` lists every bad file."
        )


def _check_batch(source: Source, batch_size: int, parts: int) -> None:
    n = len(source)
    if batch_size < 1 or parts < 1:
        raise UsageError(f"The batch size must be at least 1, got {batch_size}.")
    if batch_size > n:
        largest = n // parts * parts
        raise UsageError(
            f"A batch of {batch_size} is larger than the data: {source.name!r} has {n} "
            f"image{'s' * (n != 1)}.  "
            + (f"The largest batch possible is {largest}." if largest else "Use more images.")
        )
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        near = " or ".join(str(size) for size in (below, above) if 0 < size <= n)
        raise UsageError(
            f"A batch of {batch_size} cannot be cut into {parts} equal parts (processes x "
            f"accumulated micro-batches).  {f'Use {near}.' if near else 'Use fewer parts.'}"
        )

"""Batches of views, whose whole state is one integer: the step.

Which images make up a batch, in which order, and how each is cropped and coloured follow from
(seed, step) alone.  Any number of workers and processes sees the same global batches, and a run
that resumes at step s sees what it would have seen.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from nolabel.data.batches import Executor, Raw, StepDataset
from nolabel.data.open import Source
from nolabel.errors import DataError, NolabelError, UsageError
from nolabel.types import Batch

_PREFETCH = 2  # batches a worker may be ahead; each may be a gigabyte
RESTARTS = 3  # times that dead workers are replaced, before it is taken for the data's fault


def make_loader(
    source: Source,
    executor: Executor,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    total_steps: int,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin: bool = False,
    with_labels: bool = False,
    with_text: bool = False,
    note: Callable[[str], Any] = lambda text: None,
) -> Iterator[Batch]:
    """Yields the batches of steps start_step .. total_steps - 1: `accumulate` of them a step.

    The batches are bitwise the same for every number of workers, also when some died and were
    started again, from the first batch that had not come.  An executor whose `device` is
    not the CPU makes the views in this process; the workers then only read and decode.

    Args:
        source: Where the images come from.
        executor: Makes the views.
        seed: Seed of the order of images.
        batch_size: Images in the global batch, over all ranks and micro-batches.
        start_step: First step, 0-based; the only state there is.
        total_steps: Steps of the whole run.
        accumulate: Micro-batches a step.
        rank: This process, in [0, world).
        world: Number of processes.
        workers: Worker processes; 0 reads in this process.
        pin: Whether to return page-locked tensors, for a quick copy to a GPU.
        with_labels: Whether batches carry labels.
        with_text: Whether batches carry texts.
        note: Told when workers that died are started again.

    Raises:
        UsageError, DataError: At once, see `StepDataset`.
        DataError: From the iterator: workers died more than RESTARTS times, or the source is full
            of bad files.
    """
    dataset = StepDataset(
        source,
        executor,
        seed=seed,
        batch_size=batch_size,
        accumulate=accumulate,
        rank=rank,
        world=world,
        with_labels=with_labels,
        with_text=with_text,
    )
    steps = _Steps(start_step * accumulate, total_steps * accumulate, accumulate)
    if workers < 0:
        raise UsageError(f"The number of workers cannot be negative, got {workers}.")
    if workers == 0:
        return _here(dataset, steps, pin)
    return _in_workers(dataset, steps, min(workers, max(len(steps), 1)), pin, note)


class _Steps(Sampler[tuple[int, int]]):
    """(step, micro) in order; holds three integers, however long the run.

    Args:
        first, end: micro-batches of the whole run before those, and up to their end.
        accumulate: of them a step.
    """

    def __init__(self, first: int, end: int, accumulate: int):
        self.first, self.end, self.accumulate = first, end, accumulate

    def __len__(self) -> int:
        return max(0, self.end - self.first)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for item in range(self.first, self.end):
            yield divmod(item, self.accumulate)

    def after(self, done: int) -> _Steps:
        """Those that follow the first `done`."""
        return _Steps(self.first + done, self.end, self.accumulate)


def _here(dataset: StepDataset, steps: _Steps, pin: bool) -> Iterator[Batch]:
    for item in steps:
        batch = dataset[item]
        yield _pinned(batch) if pin else batch


def _in_workers(
    dataset: StepDataset, steps: _Steps, workers: int, pin: bool, note: Callable[[str], Any]
) -> Iterator[Batch]:
    """Batches from worker processes, which are started again when one of them dies."""
    done = deaths = 0
    while True:
        try:
            for batch in _from_workers(dataset, steps.after(done), workers, pin):
                yield batch
                done += 1
            return
        except _Died as error:
            deaths += 1
            said = f"A data worker died ({error})."
            if deaths > RESTARTS:
                raise DataError(
                    f"{said}  That was once more than the {RESTARTS} times that workers are "
                    "started again.  Most often memory ran out, or the shared memory (/dev/shm) "
                    "of a container is too small: use fewer --workers, a smaller --batch-size, or "
                    "0 workers to see the cause."
                ) from error
            note(f"{said}  Starting the workers again ({deaths} of {RESTARTS} times).")


class _Died(Exception):
    """A worker process ended without being asked to."""


def _from_workers(dataset: StepDataset, steps: _Steps, workers: int, pin: bool) -> Iterator[Batch]:
    device = torch.device(getattr(dataset.executor, "device", "cpu"))
    decode_only = device.type != "cpu"
    with warnings.catch_warnings():
        # Our workers run no threads and use nothing that a thread of this process could hold; and
        # the number of workers is the user's choice.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            _Mailer(dataset, decode_only),
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            collate_fn=_as_is,
            prefetch_factor=_PREFETCH,
            pin_memory=pin and not decode_only,
            worker_init_fn=_start_worker,
            # Forked workers share the source's memory; macOS and Windows cannot fork safely.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            # DataLoader draws a seed; from here, so that the program's own is left alone.
            generator=torch.Generator().manual_seed(0),
        )
        parcels = iter(loader)
    try:
        for parcel in _received(parcels):
            if parcel.error is not None:
                raise parcel.error
            yield dataset.finish(_unpacked(parcel.content)) if decode_only else parcel.content
    finally:
        # An error's traceback would keep the iterator, hence the workers, alive.
        stop = getattr(parcels, "_shutdown_workers", lambda: None)
        try:
            stop()
        except RuntimeError as error:
            # The signal of a worker's death may arrive only now; what it means is said already.
            if not _is_death(error):
                raise
            stop()


def _is_death(error: RuntimeError) -> bool:
    """Whether DataLoader speaks of a worker that died."""
    return "exited unexpectedly" in str(error) or "killed by signal" in str(error)


def _received(parcels: Iterator[_Parcel]) -> Iterator[_Parcel]:
    """What the workers send; their death has an error of its own."""
    try:
        yield from parcels
    except (RuntimeError, ConnectionError, EOFError) as error:  # the latter in mid-message
        if isinstance(error, RuntimeError) and not _is_death(error):
            raise
        raise _Died((str(error) or "no word").splitlines()[0]) from error


@dataclass(frozen=True)
class _Parcel:
    """What a worker sends: its content, or an error meant for the user, free of the wrapping and
    the traceback that a DataLoader would add."""

    content: Any
    error: NolabelError | None = None

    def pin_memory(self) -> _Parcel:
        """Called by DataLoader's pinning thread."""
        return self if self.error else replace(self, content=_pinned(self.content))


class _Mailer(Dataset[_Parcel]):
    """The step dataset as the workers see it."""

    def __init__(self, dataset: StepDataset, decode_only: bool):
        self.dataset, self.decode_only = dataset, decode_only

    def __getitem__(self, item: tuple[int, int]) -> _Parcel:
        try:
            if self.decode_only:
                return _Parcel(_packed(self.dataset.gather(*item)))
            return _Parcel(self.dataset[item])
        except NolabelError as error:
            return _Parcel(None, error)


def _packed(raw: Raw) -> tuple[Raw, Tensor, list[tuple[int, ...]]]:
    """Moves all pixels into one tensor, which travels through shared memory in one piece (an
    array would go through a pipe, and a tensor each would use up the file descriptors)."""
    if isinstance(raw.images, np.ndarray):
        pixels, shapes = torch.from_numpy(raw.images), []
    else:
        pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in raw.images]))
        shapes = [image.shape for image in raw.images]
    return replace(raw, images=[]), pixels, shapes


def _unpacked(content: tuple[Raw, Tensor, list[tuple[int, ...]]]) -> Raw:
    raw, pixels, shapes = content
    if not shapes:
        return replace(raw, images=pixels.numpy())
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    pieces = np.split(pixels.numpy(), ends[:-1])
    return replace(
        raw, images=[piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    )


def _as_is(content: Any) -> Any:
    return content


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # as many workers as cores is the user's choice; threads would add up
    # Ctrl-C reaches the whole group of processes.  The main one decides what it means; workers
    # leave when they are told to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mailer = getattr(get_worker_info(), "dataset", None)
    if isinstance(mailer, _Mailer) and hasattr(mailer.dataset.executor, "shared"):
        # The views are made where the main process can read them, not copied there.
        setattr(mailer.dataset.executor, "shared", True)  # noqa: B010  no field of the protocol


def _pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory; what is already on a device stays there."""

    def pin(t: Tensor) -> Tensor:
        return t.pin_memory() if t.device.type == "cpu" else t

    return replace(
        batch,
        views={name: pin(view) for name, view in batch.views.items()},
        keys=None if batch.keys is None else pin(batch.keys),
        labels=None if batch.labels is None else pin(batch.labels),
    )

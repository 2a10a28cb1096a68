"""Batches of views, whose whole state is one integer: the step.

Which images make up a batch, in which order, and how each is cropped and coloured follow from
(seed, step) alone. Any number of workers and processes sees the same global batches, and a run
that resumes at step s sees what it would have seen.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from nolabel.data.batches import BatchDataset, DecodedBatch
from nolabel.data.source import Source
from nolabel.errors import DataError, NolabelError, UsageError
from nolabel.types import Batch
from nolabel.views.executor import Executor

_PREFETCH = 2  # batches a worker may be ahead; each may be a gigabyte
RESTARTS = 3  # times that dead workers are replaced, before it is taken for the data's fault

_Shapes = list[tuple[int, ...]]
_Packed = tuple[DecodedBatch, Tensor, _Shapes]  # a decoded batch with its pixels in one tensor


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
    note: Callable[[str], object] = lambda text: None,
) -> Iterator[Batch]:
    """Yields the batches of steps start_step .. total_steps - 1: `accumulate` of them a step.

    The batches are bitwise the same for every number of workers, also when some died and were
    restarted, from the first batch that had not come. An executor whose `device` is not the CPU
    makes the views in this process; the workers then only read and decode.

    Args:
        source: where the images come from.
        executor: makes the views.
        seed: seed of the order of images.
        batch_size: images in the global batch, over all ranks and micro-batches.
        start_step: first step, 0-based; the only state there is.
        total_steps: steps of the run, from its start.
        accumulate: micro-batches a step.
        rank: number of this process, in [0, world).
        world: number of processes.
        workers: worker processes; 0 reads in this process.
        pin: whether to return page-locked tensors, for a quick copy to a GPU.
        with_labels: whether batches carry labels.
        with_text: whether batches carry texts.
        note: called with a message when workers that died are restarted.

    Yields:
        Batches of batch_size / (world x accumulate) images.

    Raises:
        UsageError: at once, see `BatchDataset`.
        DataError: at once, see `BatchDataset`; or from the iterator: workers died more than
            RESTARTS times, or the source is full of bad files.
    """
    dataset = BatchDataset(
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
    sampler = _StepSampler(start_step * accumulate, total_steps * accumulate, accumulate)
    if workers < 0:
        raise UsageError(f"The number of workers cannot be negative, got {workers}.")
    if workers == 0:
        return _in_process(dataset, sampler, pin)
    return _in_workers(dataset, sampler, min(workers, max(len(sampler), 1)), pin, note)


class _StepSampler(Sampler[tuple[int, int]]):
    """(step, micro) in order; holds three integers, however long the run.

    Args:
        first: number of the first micro-batch, counted from the start of the run.
        end: number behind the last one.
        accumulate: micro-batches of a step.
    """

    def __init__(self, first: int, end: int, accumulate: int):
        self.first, self.end, self.accumulate = first, end, accumulate

    def __len__(self) -> int:
        return max(0, self.end - self.first)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for item in range(self.first, self.end):
            yield divmod(item, self.accumulate)

    def after(self, done: int) -> _StepSampler:
        """Those that follow the first `done`."""
        return _StepSampler(self.first + done, self.end, self.accumulate)


def _in_process(dataset: BatchDataset, sampler: _StepSampler, pin: bool) -> Iterator[Batch]:
    for item in sampler:
        batch = dataset[item]
        yield _pinned(batch) if pin else batch


def _in_workers(
    dataset: BatchDataset,
    sampler: _StepSampler,
    workers: int,
    pin: bool,
    note: Callable[[str], object],
) -> Iterator[Batch]:
    """Batches from worker processes, which are restarted when one of them dies."""
    done = deaths = 0
    while True:
        try:
            for batch in _from_workers(dataset, sampler.after(done), workers, pin):
                yield batch
                done += 1
            return
        except _WorkerDied as error:
            deaths += 1
            what = f"A data worker died ({error})."
            if deaths > RESTARTS:
                raise DataError(
                    f"{what} That was once more than the {RESTARTS} times that workers are "
                    "started again. Most often memory ran out, or the shared memory (/dev/shm) "
                    "of a container is too small: use fewer --workers, a smaller --batch-size, or "
                    "0 workers to see the cause."
                ) from error
            note(f"{what} Starting the workers again ({deaths} of {RESTARTS} times).")


class _WorkerDied(Exception):
    """A worker process ended without being asked to."""


def _from_workers(
    dataset: BatchDataset, sampler: _StepSampler, workers: int, pin: bool
) -> Iterator[Batch]:
    """Batches until one of the workers dies. Raises _WorkerDied."""
    decode_only = torch.device(dataset.executor.device).type != "cpu"
    with warnings.catch_warnings():
        # Our workers run no threads and use nothing that a thread of this process could hold; and
        # the number of workers is the user's choice.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            _WorkerDataset(dataset, decode_only),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_no_collate,
            prefetch_factor=_PREFETCH,
            pin_memory=pin and not decode_only,
            worker_init_fn=_init_worker,
            # Forked workers share the source's memory; macOS and Windows cannot fork safely.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            # DataLoader draws a seed; from here, so that the program's own is left alone.
            generator=torch.Generator().manual_seed(0),
        )
        results = iter(loader)
    try:
        for result in _received(results):
            if isinstance(result.content, NolabelError):
                raise result.content
            if isinstance(result.content, Batch):
                yield result.content
            else:
                yield dataset.make_views(_from_shared(result.content))
    finally:
        # An error's traceback would keep the iterator, hence the workers, alive.
        stop = getattr(results, "_shutdown_workers", lambda: None)  # private, of DataLoader's
        try:
            stop()
        except RuntimeError as error:
            # The signal of a worker's death may arrive only now; its error was raised already.
            if not _is_death(error):
                raise
            stop()


def _is_death(error: RuntimeError) -> bool:
    """Whether this is DataLoader's error for a worker that died."""
    return "exited unexpectedly" in str(error) or "killed by signal" in str(error)


def _received(results: Iterator[_WorkerResult]) -> Iterator[_WorkerResult]:
    """What the workers send; their death becomes _WorkerDied."""
    try:
        yield from results
    except (RuntimeError, ConnectionError, EOFError) as error:  # the latter in mid-message
        if isinstance(error, RuntimeError) and not _is_death(error):
            raise
        raise _WorkerDied((str(error) or "no word").splitlines()[0]) from error


@dataclass(frozen=True)
class _WorkerResult:
    """What a worker sends: a batch, a decoded batch, or an error meant for the user, free of the
    wrapping and the traceback that a DataLoader would add."""

    content: Batch | _Packed | NolabelError

    def pin_memory(self) -> _WorkerResult:
        """Called by DataLoader's pinning thread."""
        return _WorkerResult(_pinned(self.content)) if isinstance(self.content, Batch) else self


class _WorkerDataset(Dataset[_WorkerResult]):
    """The batch dataset as the workers see it."""

    def __init__(self, dataset: BatchDataset, decode_only: bool):
        self.dataset, self.decode_only = dataset, decode_only

    def __getitem__(self, item: tuple[int, int]) -> _WorkerResult:
        try:
            if self.decode_only:
                return _WorkerResult(_to_shared(self.dataset.decode(*item)))
            return _WorkerResult(self.dataset[item])
        except NolabelError as error:
            return _WorkerResult(error)


def _to_shared(decoded: DecodedBatch) -> _Packed:
    """Moves all pixels into one tensor, which travels through shared memory in one piece (an
    array would go through a pipe, and a tensor each would use up the file descriptors)."""
    if isinstance(decoded.images, np.ndarray):
        pixels, shapes = torch.from_numpy(decoded.images), []
    else:
        pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in decoded.images]))
        shapes = [image.shape for image in decoded.images]
    return replace(decoded, images=[]), pixels, shapes


def _from_shared(content: _Packed) -> DecodedBatch:
    """What `_to_shared` was given."""
    decoded, pixels, shapes = content
    if not shapes:
        return replace(decoded, images=pixels.numpy())
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    pieces = np.split(pixels.numpy(), ends[:-1])
    return replace(
        decoded, images=[piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    )


def _no_collate(result: object) -> object:
    return result


def _init_worker(_: int) -> None:
    torch.set_num_threads(1)  # as many workers as cores is the user's choice; threads would add up
    # Ctrl-C reaches the whole group of processes. The main one decides what it means; workers
    # leave when they are asked to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _WorkerDataset):
        # The views are made where the main process can read them, not copied there.
        info.dataset.dataset.executor.shared = True


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

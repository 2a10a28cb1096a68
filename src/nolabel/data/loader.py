"""The data loader: batches of views, deterministic and resumable. Its only state is the step.

Which images a batch holds, in which order, and how each is augmented follow from (seed, step)
alone. So the global batches are the same for any number of workers and ranks, and a run resumed at
step s gets the batches of an uninterrupted run.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from nolabel._usercode import Executed
from nolabel.data import workers as processes
from nolabel.data.batches import BatchDataset, DecodedBatch
from nolabel.data.source import Source
from nolabel.data.workers import NoRoom, TooSlow, WorkerDied, Workers
from nolabel.errors import DataError, NolabelError, UsageError
from nolabel.types import Batch
from nolabel.views.executor import Executor

_PREFETCH = 2  # batches that a worker prepares in advance; each may take a gigabyte
RESTARTS = 3  # times that dead workers are restarted before the run fails

_Shapes = list[tuple[int, ...]]
_Packed = tuple[DecodedBatch, Tensor, _Shapes]  # a decoded batch, all its pixels in one tensor


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
    warn: Callable[[str], object] = lambda text: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Yields the batches of steps start_step .. total_steps - 1, `accumulate` of them per step.

    The batches are bitwise the same for every number of workers. Workers that die are restarted
    from the first batch that was not delivered, which does not change the batches either. Where
    batches cannot be sent between processes (no shared memory is left, too many files are open),
    and where a stop was requested and no batch comes, they are made in this process. If the
    executor's `device` is not the CPU, the views are made in this process, and the workers only
    read and decode.

    Args:
        source: where the images come from.
        executor: makes the views.
        seed: seed of the order of images.
        batch_size: images in the global batch, over all ranks and micro-batches.
        start_step: first step, 0-based; the loader's only state.
        total_steps: steps of the whole run.
        accumulate: micro-batches per step (gradient accumulation).
        rank: rank of this process, in [0, world).
        world: number of processes.
        workers: worker processes; 0 loads in this process.
        pin: whether to return tensors in pinned memory, for fast copies to a GPU.
        with_labels: whether batches carry labels.
        with_text: whether batches carry texts.
        warn: called with a message when dead workers are restarted, when workers do not answer,
            and when this process goes on without them.
        stopping: whether a stop was requested; asked while no batch comes.

    Yields:
        Batches of batch_size / (world x accumulate) images.

    Raises:
        UsageError: on the call, see `BatchDataset`.
        DataError: on the call, see `BatchDataset`; or while iterating: workers died more than
            RESTARTS times, or too many images in a row cannot be read.
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
    count = min(workers, max(len(sampler), 1))
    return _in_workers(dataset, sampler, count, pin, warn, stopping)


class _StepSampler(Sampler[tuple[int, int]]):
    """Yields (step, micro) in order, from three integers: no list of indices is stored.

    Args:
        first: index of the first micro-batch, counted from the start of the run.
        end: index after the last one.
        accumulate: micro-batches per step.
    """

    def __init__(self, first: int, end: int, accumulate: int):
        self.first, self.end, self.accumulate = first, end, accumulate

    def __len__(self) -> int:
        return max(0, self.end - self.first)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for item in range(self.first, self.end):
            yield divmod(item, self.accumulate)

    def skip(self, count: int) -> _StepSampler:
        """The sampler without its first `count` items."""
        return _StepSampler(self.first + count, self.end, self.accumulate)


def _in_process(dataset: BatchDataset, sampler: _StepSampler, pin: bool) -> Iterator[Batch]:
    for item in sampler:
        batch = dataset[item]
        yield _pin(batch) if pin else batch


def _in_workers(
    dataset: BatchDataset,
    sampler: _StepSampler,
    count: int,
    pin: bool,
    warn: Callable[[str], object],
    stopping: Callable[[], bool],
) -> Iterator[Batch]:
    """Batches from worker processes, which are restarted when one of them dies."""
    done = deaths = 0
    while True:
        try:
            with Workers(warn, stopping) as workers:
                for batch in _from_workers(dataset, sampler.skip(done), count, pin, workers):
                    yield batch
                    done += 1
            return
        except WorkerDied as error:
            if processes.is_bus_error(error):  # it wrote to shared memory that is full
                _say_no_room("no shared memory is left", warn)
                break
            deaths += 1
            what = f"A data worker died ({error})."
            if deaths > RESTARTS:
                raise DataError(
                    f"{what} Workers are restarted {RESTARTS} times at most. Usual causes: memory "
                    "ran out, or the shared memory (/dev/shm) of a container is too small. Use "
                    "fewer --workers or a smaller --batch-size, or --workers 0 to see the cause."
                ) from error
            warn(f"{what} Restarting the workers ({deaths} of {RESTARTS} times).")
        except NoRoom as error:
            _say_no_room(str(error), warn)
            break
        except TooSlow:
            break
    yield from _in_process(dataset, sampler.skip(done), pin)


def _say_no_room(reason: str, warn: Callable[[str], object]) -> None:
    warn(
        f"Data workers cannot send their batches: {reason}. This process reads the data from now "
        f"on, as with --workers 0. {processes.advice(reason)}"
    )


def _from_workers(
    dataset: BatchDataset, sampler: _StepSampler, count: int, pin: bool, workers: Workers
) -> Iterator[Batch]:
    """Batches until one of the workers dies. Raises as `Workers.receive`."""
    decode_only = torch.device(dataset.executor.device).type != "cpu"
    with warnings.catch_warnings():
        # Forking is safe here: the workers run no threads and take no lock that a thread of this
        # process may hold. How many workers there are is the user's decision.
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            _WorkerDataset(dataset, decode_only),
            batch_size=None,
            sampler=sampler,
            num_workers=count,
            collate_fn=_no_collate,
            prefetch_factor=_PREFETCH,
            pin_memory=pin and not decode_only,
            timeout=processes.POLL,
            worker_init_fn=_init_worker,
            multiprocessing_context=processes.START,
            # DataLoader draws a base seed; its own generator keeps the global RNG state unchanged.
            generator=torch.Generator().manual_seed(0),
        )
        results = workers.start(loader)
    try:
        for result in workers.receive(results):
            if isinstance(result.content, NoRoom | NolabelError):
                raise result.content
            if isinstance(result.content, Batch):
                yield result.content
            else:
                yield dataset.make_views(_from_shared(result.content))
    finally:
        workers.end_stopped()
        processes.end_quietly(results)


@dataclass(frozen=True)
class _WorkerResult:
    """What a worker sends: a batch, a decoded batch, an error for the user, or why it has no room.

    The error is sent as a value, since DataLoader would wrap a raised one and add its traceback.
    """

    content: Batch | _Packed | NolabelError | NoRoom

    def pin_memory(self) -> _WorkerResult:
        """Called by DataLoader's pinning thread."""
        return _WorkerResult(_pin(self.content)) if isinstance(self.content, Batch) else self


class _WorkerDataset(Dataset[_WorkerResult]):
    """The batch dataset as it runs in a worker: errors become results."""

    def __init__(self, dataset: BatchDataset, decode_only: bool):
        self.code = (
            Executed()
        )  # first: spawned workers need a user's source class before the source
        self.dataset, self.decode_only = dataset, decode_only

    def __getitem__(self, item: tuple[int, int]) -> _WorkerResult:
        try:
            if self.decode_only:
                packed = _to_shared(self.dataset.decode(*item))
                packed[1].share_memory_()
                return _WorkerResult(packed)
            return _WorkerResult(_share(self.dataset[item]))
        except NolabelError as error:
            return _WorkerResult(error)
        except (RuntimeError, OSError) as error:
            if reason := processes.no_room(error):
                return _WorkerResult(NoRoom(reason))
            raise


def _share(batch: Batch) -> Batch:
    """Moves all tensors to shared memory, here, where an error can be told.

    DataLoader would do it in a thread that prints the error and forgets the batch.
    """
    for tensor in (*batch.views.values(), batch.keys, batch.labels):
        if tensor is not None:
            tensor.share_memory_()
    return batch


def _to_shared(decoded: DecodedBatch) -> _Packed:
    """Puts the pixels of all images into one tensor, which is sent through shared memory.

    A NumPy array would be copied through a pipe, and one tensor per image would use up the file
    descriptors.
    """
    if isinstance(decoded.images, np.ndarray):
        pixels, shapes = torch.from_numpy(decoded.images), []
    else:
        pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in decoded.images]))
        shapes = [image.shape for image in decoded.images]
    return replace(decoded, images=[]), pixels, shapes


def _from_shared(content: _Packed) -> DecodedBatch:
    """The inverse of `_to_shared`."""
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
    torch.set_num_threads(1)  # one worker per core is usual: more threads would oversubscribe them
    # Ctrl-C sends SIGINT to the whole process group. The main process handles it and shuts the
    # workers down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _WorkerDataset):
        # Views are written to shared memory at once, not copied there afterwards.
        info.dataset.dataset.executor.shared = True


def _pin(batch: Batch) -> Batch:
    """The batch in pinned memory; tensors that are on a device already stay there."""

    def pin(t: Tensor) -> Tensor:
        return t.pin_memory() if t.device.type == "cpu" else t

    return replace(
        batch,
        views={name: pin(view) for name, view in batch.views.items()},
        keys=None if batch.keys is None else pin(batch.keys),
        labels=None if batch.labels is None else pin(batch.labels),
    )

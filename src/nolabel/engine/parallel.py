"""The process group of a run, and reductions over its processes.

A launcher (torchrun) starts the processes and gives each its place by the environment: RANK,
WORLD_SIZE, LOCAL_RANK. All hold the same random state; each reads its part of every batch. The
first one alone prints and writes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nolabel import distributed
from nolabel.device import uses_cuda
from nolabel.errors import NolabelError

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=10)  # of a collective, after which a process gives up


@contextlib.contextmanager
def processes(device: str) -> Iterator[None]:
    """Joins the process group that a launcher announced and leaves it at the end; does nothing in a
    single process.

    Args:
        device: auto, cpu or cuda; on GPUs each process takes the one of its LOCAL_RANK.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if uses_cuda(device):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"  # Python objects are exchanged on the CPU
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        with warnings.catch_warnings():
            # About the class token's gradient; no cost could be measured.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        dist.destroy_process_group()


def reduce_loss_and_flags(loss: Tensor, *flags: bool) -> tuple[Tensor, list[bool]]:
    """One all-reduce of a loss and of flags.

    Args:
        loss: scalar.

    Returns:
        The mean loss over processes, and for each flag whether it is set in any process.
    """
    if distributed.world_size() == 1:
        return loss, list(flags)
    means = distributed.mean(torch.cat([loss[None], loss.new_tensor(flags)]))
    return means[0], (means[1:] > 0).tolist()


def all_reduce_mean(logs: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The mean of each value over processes; all must have the same names."""
    own = torch.tensor([float(v) for v in logs.values()], dtype=torch.float64)
    return dict(zip(logs, distributed.mean(own).tolist(), strict=True))


def broadcast_object(value: T) -> T:
    """The first process's value in all processes; anything that can be pickled."""
    if distributed.world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def rank0_first(work: Callable[[], T]) -> T:
    """Runs `work` in the first process alone, and returns its result in all.

    The others wait until it is done. An error for the user is raised in all processes.
    """
    value: list[T] = []  # empty in the other processes
    error: NolabelError | None = None
    if distributed.rank() == 0:
        try:
            value = [work()]
        except NolabelError as raised:
            error = raised
    value, error = broadcast_object((value, error))
    if error is not None:
        raise error
    return value[0]


def all_gather_objects(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values of all processes, in order of rank."""
    if distributed.world_size() == 1:
        return values
    boxes: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(boxes, values)
    return tuple(v for box in boxes for v in box)


def cores() -> int:
    """Cores for this process: the machine's, shared with the other processes on it."""
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return max((os.cpu_count() or 1) // here, 1)

"""The process group of a run, and collectives on its ranks.

A launcher (torchrun) starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK in their
environment. All ranks have the same random state; each reads its part of every batch. Only rank 0
prints and writes files.
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
TIMEOUT = datetime.timedelta(minutes=10)  # of a collective


@contextlib.contextmanager
def processes(device: str) -> Iterator[None]:
    """Joins the process group of a launcher, and leaves it at the end; nothing in a single process.

    Args:
        device: auto, cpu or cuda; each process uses the GPU of its LOCAL_RANK.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if uses_cuda(device):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"  # gloo for Python objects
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        with warnings.catch_warnings():
            # DDP's warning about the class token's gradient; it costs nothing measurable.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        dist.destroy_process_group()


def reduce_loss_and_flags(loss: Tensor, *flags: bool) -> tuple[Tensor, list[bool]]:
    """One all-reduce of a loss and of flags.

    Args:
        loss: scalar.
        flags: of this rank.

    Returns:
        The mean loss over ranks, and for each flag whether it is set on any rank.
    """
    if distributed.world_size() == 1:
        return loss, list(flags)
    means = distributed.mean(torch.cat([loss[None], loss.new_tensor(flags)]))
    return means[0], (means[1:] > 0).tolist()


def all_reduce_mean(logs: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The mean of each value over ranks; all ranks must have the same names."""
    values = torch.tensor([float(v) for v in logs.values()], dtype=torch.float64)
    return dict(zip(logs, distributed.mean(values).tolist(), strict=True))


def broadcast_object(value: T) -> T:
    """Rank 0's value on all ranks; any object that can be pickled."""
    if distributed.world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def rank0_first(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0 only, and returns its result on all ranks.

    The other ranks wait. A `NolabelError` of rank 0 is raised on all ranks.
    """
    value: list[T] = []  # stays empty on the other ranks
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
    """The values of all ranks, in order of rank."""
    if distributed.world_size() == 1:
        return values
    boxes: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(boxes, values)
    return tuple(v for box in boxes for v in box)

"""One run in several processes: who they are, how gradients meet, and what they agree on.

A launcher (torchrun) starts the processes and tells each its place by the environment: RANK,
WORLD_SIZE, LOCAL_RANK.  All hold the whole method and the same random state; each has its part of
every batch.  The first one alone speaks and writes.
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
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nolabel import distributed
from nolabel.engine.norms import synchronise
from nolabel.errors import NolabelError
from nolabel.methods.base import Method
from nolabel.types import Batch, Clock, Step

T = TypeVar("T")
PATIENCE = datetime.timedelta(minutes=10)  # for the others, before a process gives up


@contextlib.contextmanager
def processes(device: str) -> Iterator[None]:
    """Joins the group that a launcher announced, and leaves it at the end; alone, does nothing.

    Args:
        device: auto, cpu or cuda; on GPUs each process takes the one of its LOCAL_RANK.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"  # what is agreed on travels by the CPU
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Together:
    """A method's step, in all processes at once: DDP averages their gradients.

    Args:
        method: on its device; the same weights on all processes.
    """

    def __init__(self, method: Method):
        self.method, self.ddp = method, None
        if distributed.world_size() > 1:
            synchronise(method, method.own_norms)
            with warnings.catch_warnings():
                # What torch 2.15 names instead is not what is meant, by its own word.
                warnings.filterwarnings(
                    "ignore", message=".broadcast_buffers", category=FutureWarning
                )
                # Buffers follow the same rules on all processes: nobody's need be sent.
                self.ddp = DistributedDataParallel(
                    _Step(method), broadcast_buffers=False, gradient_as_bucket_view=True
                )

    def step(self, batch: Batch, clock: Clock, *, last: bool = True) -> Step:
        """The loss of this process's micro-batch; the backward pass of the last one of an
        optimiser step averages the gradients."""
        if self.ddp is None:
            return self.method.step(batch, clock)
        with contextlib.nullcontext() if last else self.ddp.no_sync():
            return self.ddp(batch, clock)


class _Step(nn.Module):
    """A method whose forward pass is its step, as DDP wants it."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, clock: Clock) -> Step:
        return self.method.step(batch, clock)


def agreed(loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
    """Mean loss over processes, and whether any of them is asked to stop."""
    if distributed.world_size() == 1:
        return loss, stop
    both = distributed.mean(torch.stack([loss, loss.new_tensor(float(stop))]))
    return both[0], bool(both[1] > 0)


def averaged(logs: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Each value's mean over processes."""
    own = torch.tensor([float(v) for v in logs.values()], dtype=torch.float64)
    return dict(zip(logs, distributed.mean(own).tolist(), strict=True))


def from_first(value: T) -> T:
    """The first process's value, on all; anything that can be pickled."""
    if distributed.world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def on_first(work: Callable[[], T]) -> T:
    """What the first process's `work` returns, on all; an error meant for the user is raised on
    all too, and nobody goes on before it is done."""
    found: tuple[Any, NolabelError | None] = (None, None)
    if distributed.rank() == 0:
        try:
            found = (work(), None)
        except NolabelError as error:
            found = (None, error)
    value, error = from_first(found)
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def of_all(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values of all processes, in their order."""
    if distributed.world_size() == 1:
        return values
    boxes: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(boxes, values)
    return tuple(v for box in boxes for v in box)


def cores() -> int:
    """Cores for this process: the machine's, shared with the other processes on it."""
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return max((os.cpu_count() or 1) // here, 1)

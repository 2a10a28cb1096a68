"""One run in several processes: who they are, how gradients meet, and what they agree on.

A launcher (torchrun) starts the processes and tells each its place by the environment: RANK,
WORLD_SIZE, LOCAL_RANK.  All hold the whole method and the same random state; each has its part of
every batch.  The first one alone speaks and writes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from nolabel import distributed
from nolabel.device import uses_cuda
from nolabel.engine.checkpoint import rng_state, set_rng_state
from nolabel.engine.norms import synchronise
from nolabel.errors import NolabelError
from nolabel.methods.base import Method
from nolabel.types import Batch, Clock, Step

T = TypeVar("T")
SILENCE = 60.0  # seconds without a step after which it is asked who is missing
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
    if uses_cuda(device):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"  # what is agreed on travels by the CPU
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        with warnings.catch_warnings():
            # Of a class token's gradient; it costs nothing that could be measured.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        dist.destroy_process_group()


class Heartbeat:
    """Says which processes the others wait for, when a step does not end.

    Each process leaves word of its step in the group's store.  One that has not gone on for a while
    looks at the others': whoever is behind is named, and how long ago it was heard of.

    Args:
        say: what is to be done with such a sentence.
        silence: seconds without progress after which it is looked.
    """

    def __init__(self, say: Callable[[str], Any], silence: float = SILENCE):
        self.say, self.silence, self.step = say, silence, -1.0
        self._ended = threading.Event()
        self._store: Any = None
        if distributed.world_size() > 1:
            self._store = dist.PrefixStore("heartbeat", dist.distributed_c10d._get_default_store())
            self.beat(0)
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, step: float) -> None:
        """This process has come so far: the fraction is the share of the step that is done."""
        if self._store is not None:
            self.step, self.at = step, time.time()
            self._store.set(str(distributed.rank()), f"{step} {self.at} {os.uname().nodename}")

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()  # no more steps are expected

    def _watch(self) -> None:
        named = -1.0  # a step is spoken of once
        while not self._ended.wait(self.silence / 4):
            if time.time() - self.at > self.silence and named != self.step:
                named = self.step
                try:
                    late = ", ".join(self.late()) or "one that hangs within the step: all began it"
                except RuntimeError:  # the group is gone
                    return
                self.say(
                    f"Waiting at step {int(self.step)} for {late}. If it does not come back, the "
                    f"run ends {PATIENCE.seconds // 60} minutes after it was missed; `nolabel "
                    "resume` goes on from the last checkpoint."
                )

    def late(self) -> list[str]:
        """The processes that are behind this one's step."""
        out = []
        for rank in range(distributed.world_size()):
            if not self._store.check([str(rank)]):
                out.append(f"process {rank} (never heard of)")
                continue
            step, at, host = self._store.get(str(rank)).decode().split(" ", 2)
            if float(step) < self.step:
                ago = time.time() - float(at)
                out.append(f"process {rank} on {host} (at step {int(float(step))} for {ago:.0f} s)")
        return out


class Together:
    """A method's step, in all processes at once, with their gradients averaged.

    By default each process holds everything (DDP).  Sharded (FSDP2), each holds a part of every
    weight, gradient and moment, teachers included; the weights are whole from the start of a step
    to the end of its backward pass, those of a transformer's layers only while they are used, if
    that is asked for.

    Args:
        method: on its device; the same weights on all processes.
        shard: whether to shard it; alone nothing is.
        layers: whether attention and MLPs are put together one at a time.
    """

    def __init__(self, method: Method, *, shard: bool = False, layers: bool = False):
        self.method, self.work = method, _Work(method)
        self.ddp: DistributedDataParallel | None = None
        self.sharded: Any = None
        self.layers: list[Any] = []  # sharded on their own
        self.rest: list[nn.Parameter] = []  # that cannot be cut
        if distributed.world_size() == 1:
            return
        synchronise(method, method.own_norms)
        if shard:
            self._shard(layers)
            return
        with warnings.catch_warnings():
            # What torch 2.15 names instead is not what is meant, by its own word.
            warnings.filterwarnings("ignore", message=".broadcast_buffers", category=FutureWarning)
            # Buffers follow the same rules on all processes: nobody's need be sent.
            self.ddp = DistributedDataParallel(
                self.work, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _shard(self, layers: bool) -> None:
        self.rest = [p for p in self.method.parameters() if not p.ndim]
        for p in self.method.parameters():
            p.data = p.data.contiguous()  # channels-last ones cannot be cut
        device = next(self.method.parameters()).device.type
        mesh = init_device_mesh(device, (distributed.world_size(),))
        if layers:
            self.layers = [u for m in self.method.modules() for u in getattr(m, "shard_units", ())]
            for unit in self.layers:
                fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        self.sharded = fully_shard(
            self.work, mesh=mesh, reshard_after_forward=False, ignored_params=set(self.rest)
        )
        # Else a look before the first step would take a layer for the whole.
        self.sharded._get_fsdp_state()._lazy_init()

    def step(self, batch: Batch, clock: Clock, *, last: bool = True) -> Step:
        """The loss of this process's micro-batch; the backward pass of the last one of an
        optimiser step averages the gradients."""
        return Step(*self._run("step", (batch, clock), last=last))

    def embed(self, batch: Batch, *, last: bool = False) -> Sequence[Tensor]:
        """`Method.embed`, as a part of a step; the backward pass of the last one averages."""
        # DDP waits for every parameter, though some had their gradient before, from `compare`.
        what = "embed and touch" if last and self.ddp is not None else "embed"
        return self._run(what, (batch,), last=last)

    def compare(self, features: Sequence[Tensor], clock: Clock) -> Step:
        """`Method.compare`, as a part of a step that is not its last."""
        return Step(*self._run("compare", (clock, *features), last=False))

    def _run(self, what: str, given: tuple[Any, ...], *, last: bool) -> Any:
        if self.ddp is not None:
            with contextlib.nullcontext() if last else self.ddp.no_sync():
                return self.ddp(what, *given)
        if self.sharded is not None:
            self.sharded.set_requires_gradient_sync(last)
            return self.sharded(what, *given)
        return self.work(what, *given)

    def after_backward(self) -> None:
        """Averages what the backward pass of the last micro-batch left out."""
        if self.sharded is not None:
            for p in self.rest:
                if p.grad is not None:
                    p.grad.copy_(distributed.mean(p.grad))

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """For the time being each process has all weights in one piece, to look at.  The random
        state, which all must share, is afterwards what it was before."""
        units = [] if self.sharded is None else [self.sharded, *self.layers]
        for unit in units:
            # Whoever looks alone must not take a layer apart again: nobody else would hear of it.
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            with same_chance():
                yield
        finally:
            for unit in units:
                unit.reshard()
                unit.set_reshard_after_forward(unit is not self.sharded, recurse=False)


@contextlib.contextmanager
def same_chance() -> Iterator[None]:
    """What one process does here alone draws nothing from the random state that all share."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


class _Work(nn.Module):
    """A method whose forward pass is its step or a part of it, and whose output torch looks
    through."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, what: str, *given: Any) -> Any:
        method: Any = self.method
        if what == "embed":
            return tuple(f.clone() for f in method.embed(*given))  # no views, which FSDP2 warns of
        if what == "embed and touch":
            features = method.embed(*given)
            rest = sum(p.sum() for p in method.parameters() if p.requires_grad)
            return (features[0] + 0.0 * rest, *features[1:])
        out = method.step(*given) if what == "step" else method.compare(*given)
        return out.loss, dict(out.logs), out.features


def agreed(loss: Tensor, *flags: bool) -> tuple[Tensor, list[bool]]:
    """Mean loss over processes, and for each flag whether it is up in any of them."""
    if distributed.world_size() == 1:
        return loss, list(flags)
    means = distributed.mean(torch.cat([loss[None], loss.new_tensor(flags)]))
    return means[0], (means[1:] > 0).tolist()


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

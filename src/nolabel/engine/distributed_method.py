"""A method's forward pass in several processes: DDP or FSDP2, with averaged gradients."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from nolabel import distributed
from nolabel.backbones.base import shard_units
from nolabel.engine.norms import synchronise
from nolabel.methods.base import Contrastive, Method
from nolabel.nn.random_state import preserve_rng
from nolabel.types import Batch, Clock, Step


class DistributedMethod:
    """A method's step in all processes at once, with their gradients averaged.

    By default each process holds all weights (DDP). Sharded (FSDP2), each process holds a shard of
    every weight, gradient and moment, teachers included. The weights are gathered from the start of
    a step to the end of its backward pass; with `layers`, those of a transformer's layers are
    gathered only while they are used.

    Args:
        method: on its device, with the same weights in all processes.
        shard: whether to shard it; a single process shards nothing.
        layers: whether attention and MLPs are gathered one at a time.
    """

    def __init__(self, method: Method, *, shard: bool = False, layers: bool = False):
        self.method, self.module = method, _ForwardModule(method)
        self.ddp: DistributedDataParallel | None = None
        self.fsdp: FSDPModule | None = None
        self.units: list[FSDPModule] = []  # sharded on their own
        self.unsharded_parameters: list[nn.Parameter] = []  # 0-D tensors cannot be sharded
        if distributed.world_size() == 1:
            return
        synchronise(method, method.own_norms)
        if shard:
            self._shard(layers)
            return
        with warnings.catch_warnings():
            # torch 2.15 proposes a replacement that does something else, as its own text says.
            warnings.filterwarnings("ignore", message=".broadcast_buffers", category=FutureWarning)
            # Buffers follow the same rules in all processes: none need be broadcast.
            self.ddp = DistributedDataParallel(
                self.module, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _shard(self, layers: bool) -> None:
        self.unsharded_parameters = [p for p in self.method.parameters() if not p.ndim]
        for p in self.method.parameters():
            p.data = p.data.contiguous()  # FSDP2 takes no channels-last tensors
        device = next(self.method.parameters()).device.type
        mesh = init_device_mesh(device, (distributed.world_size(),))
        for unit in shard_units(self.method) if layers else ():
            self.units.append(fully_shard(unit, mesh=mesh, reshard_after_forward=True))
        self.fsdp = fully_shard(
            self.module, mesh=mesh, reshard_after_forward=False,
            ignored_params=set(self.unsharded_parameters),
        )  # fmt: skip
        # Without this, a forward pass of one unit before the first step makes that unit the root.
        self.fsdp._get_fsdp_state()._lazy_init()

    def step(self, batch: Batch, clock: Clock, *, last: bool = True) -> Step:
        """The loss of this process's micro-batch.

        Args:
            last: whether it is the last micro-batch of the optimiser step; its backward pass
                averages the gradients over processes.
        """
        return Step(*self._forward(_step, (batch, clock), last=last))

    def features(self, batch: Batch, *, last: bool = False) -> tuple[Tensor, ...]:
        """`Contrastive.features`, a part of a step; the backward pass of the last one averages."""
        # DDP waits for a gradient of every parameter in the last pass; those that `compare` alone
        # uses had theirs before.
        work = _features_and_touch if last and self.ddp is not None else _features
        return self._forward(work, (batch,), last=last)

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        """`Contrastive.compare`, a part of a step that is not its last."""
        return Step(*self._forward(_compare, (features, clock), last=False))

    def _forward(self, work: Callable[..., Any], given: tuple[Any, ...], *, last: bool) -> Any:
        if self.ddp is not None:
            with contextlib.nullcontext() if last else self.ddp.no_sync():
                return self.ddp(work, *given)
        if self.fsdp is not None:
            self.fsdp.set_requires_gradient_sync(last)
        return self.module(work, *given)

    def after_backward(self) -> None:
        """Averages the gradients of the parameters that FSDP2 does not handle."""
        for p in self.unsharded_parameters:
            if p.grad is not None:
                p.grad.copy_(distributed.mean(p.grad))

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        """All weights in every process for a while, so that the first one can probe the network on
        its own. The random state is left as it was: all processes share it.

        A collective: all processes must enter it.
        """
        modules = [] if self.fsdp is None else [self.fsdp, *self.units]
        for module in modules:
            # rank-0-only forward: do not reshard, the other ranks will not join the all-gather.
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            with preserve_rng():
                yield
        finally:
            for module in modules:
                module.reshard()
                module.set_reshard_after_forward(module is not self.fsdp, recurse=False)


class _ForwardModule(nn.Module):
    """Runs a part of a method's step as a module's forward pass, where DDP and FSDP2 hook in."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, work: Callable[..., Any], *given: Any) -> Any:
        return work(self.method, *given)


# The outputs are tuples and dicts of tensors: DDP looks for tensors in those alone.
_Output = tuple[Tensor, dict[str, Any], Tensor | None]


def _step(method: Method, batch: Batch, clock: Clock) -> _Output:
    out = method.step(batch, clock)
    return out.loss, dict(out.logs), out.features


def _compare(method: Contrastive, features: tuple[Tensor, ...], clock: Clock) -> _Output:
    out = method.compare(features, clock)
    return out.loss, dict(out.logs), out.features


def _features(method: Contrastive, batch: Batch) -> tuple[Tensor, ...]:
    return tuple(f.clone() for f in method.features(batch))  # FSDP2 warns of views


def _features_and_touch(method: Contrastive, batch: Batch) -> tuple[Tensor, ...]:
    """The features, with a zero gradient for every parameter."""
    features = method.features(batch)
    touch = sum(p.sum() for p in method.parameters() if p.requires_grad)
    return (features[0] + 0.0 * touch, *features[1:])

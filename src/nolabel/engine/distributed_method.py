"""Data-parallel training of a method: DDP or FSDP2."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

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

_T = TypeVar("_T")


class DistributedMethod:
    """Runs a method's step on all ranks, with gradients averaged over ranks.

    By default each rank holds all weights (DDP). With `shard` (FSDP2), each rank holds a shard of
    every weight, gradient and moment, EMA teachers included. The weights are all-gathered at the
    start of a step and resharded after its backward pass; with `by_layer`, those of attention and
    MLP layers are all-gathered only while the layer runs.

    Args:
        method: on its device, with the same weights on all ranks.
        shard: whether to use FSDP2; a single process shards nothing.
        by_layer: whether each attention and MLP layer is an FSDP2 unit of its own.
    """

    def __init__(self, method: Method, *, shard: bool = False, by_layer: bool = False):
        self.method, self.module = method, _ForwardModule(method)
        self.ddp: DistributedDataParallel | None = None
        self.fsdp: FSDPModule | None = None
        self.units: list[FSDPModule] = []  # layers that are FSDP2 units
        self.unsharded_parameters: list[nn.Parameter] = []  # FSDP2 cannot shard 0-D tensors
        if distributed.world_size() == 1:
            return
        synchronise(method, method.own_norms)
        if shard:
            self._shard(by_layer)
            return
        with warnings.catch_warnings():
            # The replacement that torch 2.15 suggests behaves differently, as its warning says.
            warnings.filterwarnings("ignore", message=".broadcast_buffers", category=FutureWarning)
            # All ranks update their buffers in the same way, so there is nothing to broadcast.
            self.ddp = DistributedDataParallel(
                self.module, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _shard(self, by_layer: bool) -> None:
        self.unsharded_parameters = [p for p in self.method.parameters() if not p.ndim]
        for p in self.method.parameters():
            p.data = p.data.contiguous()  # FSDP2 does not support channels-last weights
        device = next(self.method.parameters()).device.type
        mesh = init_device_mesh(device, (distributed.world_size(),))
        for unit in shard_units(self.method) if by_layer else ():
            self.units.append(fully_shard(unit, mesh=mesh, reshard_after_forward=True))
        self.fsdp = fully_shard(
            self.module, mesh=mesh, reshard_after_forward=False,
            ignored_params=set(self.unsharded_parameters),
        )  # fmt: skip
        # Initialise the root now: else a forward pass of one unit (a probe before the first step)
        # would make that unit the root.
        self.fsdp._get_fsdp_state()._lazy_init()

    def step(self, batch: Batch, clock: Clock, *, last: bool = True) -> Step:
        """The method's step on this rank's micro-batch.

        Args:
            last: whether it is the last micro-batch of the optimiser step: its backward pass
                all-reduces the gradients.
        """
        return Step(*self._forward(_step, (batch, clock), last=last))

    def features(self, batch: Batch, *, last: bool = False) -> tuple[Tensor, ...]:
        """`Contrastive.features` of a micro-batch; the last one's backward pass all-reduces."""
        # In the synchronising pass DDP needs a gradient for every parameter; those that only
        # `compare` uses got theirs in an earlier pass.
        work = _features_of_all_parameters if last and self.ddp is not None else _features
        return self._forward(work, (batch,), last=last)

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        """`Contrastive.compare` of the features of all micro-batches; without all-reduce."""
        return Step(*self._forward(_compare, (features, clock), last=False))

    def _forward(self, work: Callable[..., _T], args: tuple[object, ...], *, last: bool) -> _T:
        if self.ddp is not None:
            with contextlib.nullcontext() if last else self.ddp.no_sync():
                return self.ddp(work, *args)
        if self.fsdp is not None:
            self.fsdp.set_requires_gradient_sync(last)
        return self.module(work, *args)

    def after_backward(self) -> None:
        """Averages the gradients of the parameters that FSDP2 does not shard."""
        for p in self.unsharded_parameters:
            if p.grad is not None:
                p.grad.copy_(distributed.mean(p.grad))

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        """Inside, every rank holds all weights, so that rank 0 can run the network by itself.

        The random state is restored at the end: it is the same on all ranks. A collective: all
        ranks must enter it.
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

    def forward(self, work: Callable[..., _T], *args: object) -> _T:
        return work(self.method, *args)


# Tuples and dicts of tensors: DDP does not find tensors in other objects.
_Output = tuple[Tensor, dict[str, Tensor | float], Tensor | None]


def _step(method: Method, batch: Batch, clock: Clock) -> _Output:
    out = method.step(batch, clock)
    return out.loss, dict(out.logs), out.features


def _compare(method: Contrastive, features: tuple[Tensor, ...], clock: Clock) -> _Output:
    out = method.compare(features, clock)
    return out.loss, dict(out.logs), out.features


def _features(method: Contrastive, batch: Batch) -> tuple[Tensor, ...]:
    return tuple(f.clone() for f in method.features(batch))  # clones: FSDP2 warns about views


def _features_of_all_parameters(method: Contrastive, batch: Batch) -> tuple[Tensor, ...]:
    """The features, with a term that gives every other parameter a zero gradient."""
    features = method.features(batch)
    total = sum(p.sum() for p in method.parameters() if p.requires_grad)
    return (features[0] + 0.0 * total, *features[1:])

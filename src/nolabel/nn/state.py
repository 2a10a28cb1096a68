"""Blocks with state between steps, in buffers, so that checkpoints have it.

`momentum` is always the weight of the old value.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from nolabel import distributed

Net = TypeVar("Net", bound=nn.Module)


class Ema(nn.Module, Generic[Net]):
    """An EMA teacher: a copy of the student without gradient, updated once an optimiser step.

    Args:
        student: copied as it is.
    """

    module: Net  # the copy
    followed: tuple[nn.Module, ...] = ()  # the last student; in a tuple, so not a submodule

    def __init__(self, student: Net):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student; parameters, not buffers.

        Args:
            student: of the same architecture.
            momentum: weight of the old teacher, in [0, 1].
        """
        shard = distributed.local_shard  # with FSDP2, teacher and student have equal shards
        old: list[Tensor] = [shard(p.detach()) for p in self.module.parameters()]
        new: list[Tensor] = [shard(p.detach()) for p in student.parameters()]
        torch._foreach_lerp_(old, new, 1.0 - momentum)
        self.followed = (student,)

    def forward(self, *args: Tensor) -> Tensor:
        """The teacher's output, without gradient."""
        with torch.no_grad():
            return self.module(*args)


class StepBuffer:
    """Collects tensors of the micro-batches of one optimiser step until its update.

    `Method.step` adds, `Method.after_update` takes; the latter is not called for a rejected step.
    So gradient accumulation equals the large batch, and a rejected step has no effect: the first
    `add` of the next step discards its tensors.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []
        self._step = -1

    def add(self, step: int, *values: Tensor) -> None:
        """Adds the tensors of a micro-batch, detached.

        Args:
            step: number of the optimiser step.
            values: tensors [n, ...]; equally many in each micro-batch, of equal shapes but for n.
        """
        if step != self._step:  # discards the tensors of a rejected step
            self._parts, self._step = [], step
        self._parts.append(tuple(v.detach() for v in values))

    def take(self) -> tuple[Tensor, ...]:
        """The tensors of the step, concatenated along dimension 0; empties the buffer.

        Returns:
            as many tensors as `add` got; () if nothing was added.
        """
        parts, self._parts = self._parts, []
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))


class Centre(nn.Module):
    """Running mean of the teacher's logits (DINO, equation 4), over all ranks.

    `observe` collects in each micro-batch, `update` applies once an optimiser step.

    Args:
        prototypes: K.
        momentum: m.

    Attributes:
        value: c, float32 [1, K], initially 0.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, prototypes))
        self._new = StepBuffer()

    @torch.no_grad()
    def observe(self, logits: Tensor, step: int) -> None:
        """Collects logits [..., K] of optimiser step `step` on this rank."""
        flat = logits.float().flatten(0, -2)
        self._new.add(step, flat.sum(0, keepdim=True), flat.new_full((1,), float(len(flat))))

    @torch.no_grad()
    def update(self) -> None:
        """c <- m c + (1 - m) mean of the logits of this step, all-reduced over ranks."""
        sums = self._new.take()
        if not sums:
            return
        total, count = (distributed.sum(x.sum(0)) for x in sums)
        mean = total / count.clamp_min(1)
        self.value.lerp_(mean[None], (1.0 - self.momentum) * (count > 0))  # without logits: no move

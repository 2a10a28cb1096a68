"""The only stateful blocks: buffers and frozen copies, so always saved.

`momentum` is always the weight of the OLD value.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nolabel import distributed


class Ema(nn.Module):
    """A teacher: equal to its student at birth, without gradient, moved once an update."""

    module: Any  # the frozen copy, of the student's class
    followed: tuple[nn.Module, ...] = ()  # whom it followed last; a tuple, so no child of its own

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, parameters only."""
        own = distributed.local_shard  # teacher and student are sharded alike, if they are
        mine: list[Tensor] = [own(p.detach()) for p in self.module.parameters()]
        theirs: list[Tensor] = [own(p.detach()) for p in student.parameters()]
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)
        self.followed = (student,)

    def forward(self, *args: Tensor) -> Tensor:
        with torch.no_grad():
            return self.module(*args)


class StepBuffer:
    """What the micro-batches of one optimiser step bring, until its update.

    A block collects in `Method.step` and applies in `Method.after_update`, which the guard skips
    together with the update. So accumulated micro-batches equal the large batch, and a step that
    was rejected leaves no trace: the next step's first `add` drops what it had collected.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []
        self._step = -1

    def add(self, step: int, *values: Tensor) -> None:
        """Keeps the values of a micro-batch, without gradient.

        Args:
            step: number of the optimiser step.
            values: tensors [n, ...], as many and of the same shapes in every micro-batch, but
                for n.
        """
        if step != self._step:  # a new step, or the one before was rejected
            self._parts, self._step = [], step
        self._parts.append(tuple(v.detach() for v in values))

    def take(self) -> tuple[Tensor, ...]:
        """The values of the whole step, each joined along dimension 0; the buffer is empty then.

        Empty if nothing was added since the last time.
        """
        parts, self._parts = self._parts, []
        return tuple(torch.cat(some) for some in zip(*parts, strict=True))


class Centre(nn.Module):
    """Running mean of the teacher's logits (DINO, equation 4).

    `observe` only collects (`StepBuffer`); `update` moves the centre once an optimiser step.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, prototypes))
        self._new = StepBuffer()

    @torch.no_grad()
    def observe(self, logits: Tensor, step: int) -> None:
        """Adds logits [..., K] of optimiser step `step` to what `update` will use."""
        flat = logits.float().flatten(0, -2)
        self._new.add(step, flat.sum(0, keepdim=True), flat.new_full((1,), float(len(flat))))

    @torch.no_grad()
    def update(self) -> None:
        """centre <- m * centre + (1 - m) * mean of what was observed, over all processes."""
        seen = self._new.take()
        if not seen:
            return
        total, count = (distributed.sum(x.sum(0)) for x in seen)
        mean = total / count.clamp_min(1)
        self.value.lerp_(mean[None], (1.0 - self.momentum) * (count > 0))  # nothing seen: no move

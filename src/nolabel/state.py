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

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, parameters only."""
        mine: list[Tensor] = [p.detach() for p in self.module.parameters()]
        theirs: list[Tensor] = [p.detach() for p in student.parameters()]
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)

    def forward(self, *args: Tensor) -> Tensor:
        with torch.no_grad():
            return self.module(*args)


class Centre(nn.Module):
    """Running mean of the teacher's logits (DINO, equation 4).

    `observe` only collects; `update` moves the centre once an optimiser step.  So accumulated
    micro-batches equal the large batch, and a step that the guard skips leaves no trace.
    """

    value: Tensor
    _sum: Tensor
    _count: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, prototypes))
        self.register_buffer("_sum", torch.zeros(1, prototypes), persistent=False)
        self.register_buffer("_count", torch.zeros(()), persistent=False)
        self._step = -1

    @torch.no_grad()
    def observe(self, logits: Tensor, step: int) -> None:
        """Adds logits [..., K] of optimiser step `step` to what `update` will use."""
        if step != self._step:  # a new step, or the one before was skipped
            self._sum.zero_()
            self._count.zero_()
            self._step = step
        flat = logits.float().flatten(0, -2)
        self._sum += flat.sum(0, keepdim=True)
        self._count += len(flat)

    @torch.no_grad()
    def update(self) -> None:
        """centre <- m * centre + (1 - m) * mean of what was observed, over all processes."""
        mean = distributed.sum(self._sum.clone()) / distributed.sum(self._count.clone())
        self.value.mul_(self.momentum).add_(mean, alpha=1.0 - self.momentum)

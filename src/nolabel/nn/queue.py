"""A queue of embeddings of earlier batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel import distributed
from nolabel.nn.state import StepBuffer


class Queue(nn.Module):
    """A first-in, first-out queue of embeddings of all ranks (MoCo, §3.1), equal on each rank.

    `observe` collects in each micro-batch, `update` enqueues once an optimiser step.

    Args:
        size: number of rows.
        dim: width D.

    Attributes:
        value: float32 [size, D], initially random unit vectors.
        count: int64 scalar, embeddings enqueued so far.
    """

    value: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("value", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # enqueued so far
        self._new = StepBuffer()

    @property
    def full(self) -> bool:
        """Whether no initial random vectors are left."""
        return int(self.count) >= len(self.value)

    @torch.no_grad()
    def observe(self, z: Tensor, step: int) -> None:
        """Collects embeddings z [B, D] of optimiser step `step` on this rank."""
        self._new.add(step, z.float())

    @torch.no_grad()
    def update(self) -> None:
        """Replaces the oldest rows by the collected embeddings, all-gathered in order of rank."""
        (new,) = self._new.take()
        new = distributed.gather(new)
        size, first = len(self.value), int(self.count)
        rows = torch.arange(first, first + len(new), device=new.device) % size
        self.value[rows[-size:]] = new[-size:].to(self.value.dtype)
        self.count += len(new)

    def local_rows(self) -> Tensor:
        """This rank's share of the rows [size / W, D]: every W-th one, starting at its rank."""
        return self.value[distributed.rank() :: distributed.world_size()]

"""A queue of embeddings of earlier batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel import distributed
from nolabel.nn.state import StepBuffer


class Queue(nn.Module):
    """The last `size` embeddings, first in, first out; random unit vectors at birth (MoCo).

    `observe` only collects (`StepBuffer`); `update` enqueues once an optimiser step, the embeddings
    of all processes in order of rank.
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
        """Whether every row has been enqueued."""
        return int(self.count) >= len(self.value)

    @torch.no_grad()
    def observe(self, z: Tensor, step: int) -> None:
        """Adds embeddings z [B, D] of optimiser step `step` to what `update` will enqueue."""
        self._new.add(step, z.float())

    @torch.no_grad()
    def update(self) -> None:
        """Enqueues what was observed, over all processes, in place of the oldest rows."""
        (new,) = self._new.take()
        new = distributed.gather(new)
        size, start = len(self.value), int(self.count)
        places = torch.arange(start, start + len(new), device=new.device) % size
        self.value[places[-size:]] = new[-size:].to(self.value.dtype)
        self.count += len(new)

    def local_rows(self) -> Tensor:
        """This process's share of the rows: every W-th one of W processes, from its rank on."""
        return self.value[distributed.rank() :: distributed.world_size()]

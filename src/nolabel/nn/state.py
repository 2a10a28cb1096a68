"""The only stateful blocks: buffers and frozen copies, so always saved.

`momentum` is always the weight of the OLD value.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
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


class Frozen:
    """A network that never changes: a teacher or a tokenizer from elsewhere.

    Not a module, so that the method that holds it neither trains nor saves it: the run's folder
    has a copy of its file.  It follows its input's device, and always is in evaluation mode.

    Args:
        module: the network.
        mean, std: of each channel, for which it was trained.
        given: mean and std of the images that `prepare` gets, the run's; None means its own.
        image_size: side in pixels at which it is used; 0 takes images as they are.
        about: what is known of it, for the copy.
    """

    def __init__(
        self,
        module: Any,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        given: tuple[Sequence[float], Sequence[float]] | None = None,
        image_size: int = 0,
        about: Mapping[str, Any] | None = None,
    ):
        self.module = module.eval().requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)
        self.given = (tuple(given[0]), tuple(given[1])) if given else (self.mean, self.std)
        self.image_size, self.about = image_size, dict(about or {})

    def __deepcopy__(self, memo: Any) -> Frozen:
        return self  # nothing in it changes

    def prepare(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The run's images [N, C, H, W] as this network wants them: of its size and statistics.

        Also moves the network to their device.

        Args:
            size: (height, width) in pixels instead of `image_size`.
        """
        self.module.to(x.device)
        own = (self.image_size, self.image_size)
        if (wanted := size or (own if self.image_size else x.shape[-2:])) != x.shape[-2:]:
            x = F.interpolate(x, size=wanted, mode="bicubic", antialias=True)
        if self.given == (self.mean, self.std):
            return x

        def channels(values: Sequence[float]) -> Tensor:
            return x.new_tensor(values).view(1, -1, 1, 1)

        mean, std = self.given
        return (x * channels(std) + channels(mean) - channels(self.mean)) / channels(self.std)


class Queue(nn.Module):
    """The last `size` embeddings, first in, first out; random unit vectors at birth (MoCo).

    `observe` only collects; `update` enqueues once an optimiser step, the embeddings of all
    processes in order of rank.  So accumulated micro-batches equal the large batch, and a step
    that the guard skips leaves no trace.
    """

    value: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("value", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # enqueued so far
        self._new: list[Tensor] = []
        self._step = -1

    @property
    def full(self) -> bool:
        """Whether every row has been enqueued."""
        return int(self.count) >= len(self.value)

    @torch.no_grad()
    def observe(self, z: Tensor, step: int) -> None:
        """Adds embeddings z [B, D] of optimiser step `step` to what `update` will enqueue."""
        if step != self._step:  # a new step, or the one before was skipped
            self._new, self._step = [], step
        self._new.append(z.detach().float())

    @torch.no_grad()
    def update(self) -> None:
        """Enqueues what was observed, over all processes, in place of the oldest rows."""
        new = distributed.gather(torch.cat(self._new))
        size, start = len(self.value), int(self.count)
        places = torch.arange(start, start + len(new), device=new.device) % size
        self.value[places[-size:]] = new[-size:].to(self.value.dtype)
        self.count += len(new)
        self._new = []


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
        count = distributed.sum(self._count)
        mean = distributed.sum(self._sum) / count.clamp_min(1)
        self.value.lerp_(mean, (1.0 - self.momentum) * (count > 0))  # nothing seen, nothing moved

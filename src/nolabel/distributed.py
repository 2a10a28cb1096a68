"""Collectives over ranks; without a process group they work as with one rank."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if _initialised() else 1


def is_main() -> bool:
    """Whether this process prints and writes files: rank 0, or RANK=0 before there is a group."""
    return rank() == 0 if _initialised() else os.environ.get("RANK", "0") == "0"


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return gather(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        # A copy: autograd may hand the same tensor to others, and all_reduce writes into it.
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)  # every process's loss depends on every slice
        n = len(grad) // world_size()
        return grad[rank() * n : (rank() + 1) * n]


def gather_with_grad(x: Tensor) -> Tensor:
    """[B, ...] of every process to [W*B, ...], in order of rank.

    The backward pass sums the gradients that all processes have for a slice. Under DDP, which
    averages over processes, a loss that is a mean per process then has the gradient of the mean
    over the whole batch.

    Args:
        x: [B, ...], of one shape on all processes (the loader's batches are).
    """
    return _Gather.apply(x) if world_size() > 1 else x


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """[B, ...] of every process to [W*B, ...], in order of rank, without gradient.

    Args:
        x: [B, ...], of one shape on all processes.
    """
    if world_size() == 1:
        return x.detach()
    parts = [
        torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())
    ]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def sum(x: Tensor) -> Tensor:
    """Sum of x (any shape) over processes, without gradient; x itself stays as it is."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """Mean of x (any shape) over processes, without gradient; x itself stays as it is."""
    return sum(x) / world_size() if world_size() > 1 else x.detach()


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count over all processes (0 where the count is), as a term of this process's loss.

    The mean over processes of what is returned, which DDP's gradients are of, is the sum of their
    totals over the sum of their counts: the loss of the whole batch, however uneven the parts.

    Args:
        total: scalar, with gradient.
        count: scalar, of what `total` is a sum; without gradient.
    """
    return total * world_size() / sum(count).clamp_min(1)


def global_rows(n: int, copies: int = 1, device: torch.device | None = None) -> Tensor:
    """Indices of this rank's rows among the rows of all ranks.

    The global batch is split into W parts of n images; each image has `copies` rows, view by view.

    Args:
        n: images of this process.
        copies: rows of each image.
        device: of the result.

    Returns:
        int64 [copies * n], of rows [copies * W * n].
    """
    images = torch.arange(n, device=device) + rank() * n
    return (torch.arange(copies, device=device)[:, None] * (n * world_size()) + images).flatten()


def draw_for_rank(draw: Callable[[int], Tensor], n: int) -> Tensor:
    """This rank's n rows of random numbers that are drawn for the global batch.

    All ranks have the same random state and draw the same numbers, so each image gets what it would
    get in a single process, and different images get different numbers.

    Args:
        draw: draws that many rows.
        n: images of this process.
    """
    return draw(n * world_size())[rank() * n : (rank() + 1) * n]


def random_rows(x: Tensor, n: int) -> Tensor:
    """n random rows of all ranks, drawn with replacement; the same result on every rank.

    Args:
        x: [B, ...] of this process, of one shape on all processes.
        n: rows to draw.
    """
    drawn = torch.randint(len(x) * world_size(), (n,), device=x.device)
    local = drawn - rank() * len(x)
    here = (local >= 0) & (local < len(x))  # each rank contributes its own rows
    return sum(x[local.clamp(0, len(x) - 1)] * here[:, None])


def local_shard(x: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor (FSDP2); any other tensor is returned as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def full_tensor(x: Tensor) -> Tensor:
    """A sharded tensor, all-gathered (a collective); any other tensor is returned as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A full tensor, equal on all ranks, sharded like `like` and on its device."""
    if not isinstance(like, DTensor) or x.shape != like.shape:
        return x
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)


def tensor_norms(tensors: list[Tensor]) -> list[Tensor]:
    """Norm of each tensor, in fp32 or wider: squares of bf16 or fp16 underflow or overflow.

    For a sharded tensor, the norm of the full tensor; then it is a collective.
    """
    wide = torch.float32
    for dtype in {t.dtype for t in tensors}:
        wide = torch.promote_types(wide, dtype)
    parts = [local_shard(t) for t in tensors]
    norms = list(torch._foreach_norm(parts, 2, dtype=wide))
    sharded = [i for i, (t, part) in enumerate(zip(tensors, parts, strict=True)) if t is not part]
    if sharded:
        squares = sum(torch.stack([norms[i] for i in sharded]).square())
        for i, square in zip(sharded, squares, strict=True):
            norms[i] = square.sqrt()
    return norms


def barrier() -> None:
    """Waits for all processes."""
    if _initialised():
        dist.barrier()

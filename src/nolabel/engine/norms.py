"""Batch norm over the images of all processes."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nolabel import distributed


class SyncedBatchNorm(_BatchNorm):
    """Batch norm whose mean and variance are those of the whole batch, also on the CPU, where
    torch's own has none; parts may be of any length, or empty."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any [N, C, ...]."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims, n, c = [0, *range(2, x.ndim)], x.numel() // x.shape[1], x.shape[1]
        if n:
            var, mean = torch.var_mean(x, dims, correction=0)
        else:
            var = mean = x.sum(dims)  # zeros that know their input
        own = torch.cat([x.new_full((1,), n), mean, n * var])
        counts, means, squares = distributed.gather_with_grad(own[None]).split([1, c, c], 1)
        total = counts.sum()
        if total < 2:
            raise ValueError("Batch norm needs more than one value of each channel while training.")
        mean = (counts * means).sum(0) / total
        var = (squares + counts * (means - mean).square()).sum(0) / total
        self._follow(mean.detach(), var.detach() * total / (total - 1))
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # noqa: S101  as the other two
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


def synchronise(method: nn.Module, without: Collection[str] = ()) -> None:
    """Every batch norm of a method, but in the children `without`, sees the images of all processes
    from now on. Parameters, buffers and their names stay."""
    for name, module in method.named_modules():
        own = name.partition(".")[0] in without
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not own:
            module.__class__ = SyncedBatchNorm  # type: ignore[assignment]

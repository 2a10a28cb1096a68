"""Synchronised batch norm: statistics over the images of all ranks."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nolabel import distributed


class SyncedBatchNorm(_BatchNorm):
    """Batch norm with mean and variance over all ranks.

    Unlike torch's SyncBatchNorm it runs on the CPU too, and the batches of the ranks may differ in
    size or be empty.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Accepts any [N, C, ...]."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims, n, c = [0, *range(2, x.ndim)], x.numel() // x.shape[1], x.shape[1]
        if n:
            var, mean = torch.var_mean(x, dims, correction=0)
        else:
            var = mean = x.sum(dims)  # zeros, connected to the input so that backward works
        local = torch.cat([x.new_full((1,), n), mean, n * var])
        counts, means, squares = distributed.gather_with_grad(local[None]).split([1, c, c], 1)
        total = counts.sum()
        if total < 2:
            raise ValueError("Batch norm needs more than one value of each channel while training.")
        mean = (counts * means).sum(0) / total
        var = (squares + counts * (means - mean).square()).sum(0) / total
        self._update_running(mean.detach(), var.detach() * total / (total - 1))
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor) -> None:
        """Updates the running mean and variance, [C] each."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # noqa: S101  as the other two
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # cumulative average
            momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)


def synchronise(method: nn.Module, without: Collection[str] = ()) -> None:
    """Turns the batch norms of a method into synchronised ones; parameters and buffers stay.

    Args:
        without: names of children whose batch norms stay local.
    """
    for name, module in method.named_modules():
        local = name.partition(".")[0] in without
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not local:
            module.__class__ = SyncedBatchNorm  # type: ignore[assignment]

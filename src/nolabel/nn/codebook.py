"""A codebook: vectors that stand for what is near them (VQ-VAE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nolabel import distributed
from nolabel.device import in_fp32
from nolabel.nn.state import StepBuffer

EPS = 1e-5  # Laplace smoothing of the codes' counts


class Codebook(nn.Module):
    """K codes of width D, with moving averages of their use (VQ-VAE, §3.2 and appendix A.1).

        N_i <- g N_i + (1 - g) n_i,   m_i <- g m_i + (1 - g) sum of its vectors,   e_i <- m_i / N_i

    for n_i vectors at code i in a step; the N in the last ratio are smoothed.
    `observe` collects in each micro-batch, `update` applies once an optimiser step.

    Args:
        codes: K.
        dim: D.
        ema: the codes are moving averages; False: parameters, which a loss trains.
        decay: g, weight of the old averages, in [0, 1).
        revive: codes used less than this times an equal share become random vectors; 0 = never.
    """

    codes: Tensor  # e [K, D]
    count: Tensor  # N [K]
    total: Tensor  # m [K, D]

    def __init__(self, codes: int, dim: int, *, ema: bool, decay: float, revive: float):
        super().__init__()
        self.ema, self.decay, self.revive = ema, decay, revive
        start = torch.randn(codes, dim)
        self.register_buffer("count", torch.zeros(codes))
        if ema:
            self.register_buffer("codes", start)
            self.register_buffer("total", torch.zeros(codes, dim))
        else:
            self.codes = nn.Parameter(start)
        self._seen = StepBuffer()

    @torch.no_grad()
    @in_fp32
    def nearest(self, z: Tensor) -> Tensor:
        """Ids int64 [...] of the codes nearest to z [..., D], the distances in fp32."""
        e = self.codes.to(z.dtype)
        return (e.square().sum(-1) - 2.0 * (z @ e.T)).argmin(-1)  # |z|^2 is the same for all

    @torch.no_grad()
    def observe(self, z: Tensor, ids: Tensor, step: int) -> None:
        """Collects vectors z [..., D] with ids int64 [...] of optimiser step `step`."""
        self._seen.add(step, z.float().flatten(0, -2), ids.flatten())

    @torch.no_grad()
    def update(self) -> None:
        """Updates the averages over all ranks, with `ema` the codes too, and replaces dead
        codes."""
        (z, ids), k = self._seen.take(), len(self.codes)
        count = torch.bincount(ids, minlength=k).to(z.dtype)
        self.count.lerp_(distributed.sum(count), 1.0 - self.decay)
        n = self.count.sum()
        if self.ema:
            total = torch.zeros_like(self.total).index_add_(0, ids, z)
            self.total.lerp_(distributed.sum(total), 1.0 - self.decay)
            smooth = (self.count + EPS) / (n + k * EPS) * n
            mean = self.total / smooth[:, None]
            self.codes.copy_(torch.where(self.count[:, None] > 0, mean, self.codes))
        if self.revive:
            dead = self.count < self.revive * n / k
            fresh = distributed.random_rows(z, k)
            self.codes[dead] = fresh[dead]
            self.count[dead] = n / k  # as if of average use, so that it is not replaced at once
            if self.ema:
                self.total[dead] = fresh[dead] * n / k

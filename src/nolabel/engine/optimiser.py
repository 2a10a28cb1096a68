"""Optimisers with the papers' parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nolabel.errors import unknown
from nolabel.schedules import learning_rate, weight_decay
from nolabel.types import Clock, Optim

NAMES = ("adamw", "sgd", "lars")


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), as MoCo v3 and
    Barlow Twins use it: decay, then the trust ratio, then momentum.

    The rate of a decayed tensor is scaled by eta * |w| / |g + decay * w|; tensors of the group
    without decay (1-D, biases) are neither decayed nor scaled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "eta": eta,
                "decay": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if group["decay"]:
                    update = update.add(p, alpha=group["weight_decay"])
                    w, u = p.norm(), update.norm()
                    ratio = torch.where((w > 0) & (u > 0), group["eta"] * w / u, 1.0)
                    update = update * ratio
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(update)
                p.add_(state["momentum"], alpha=-group["lr"])


def build_optimiser(method: nn.Module, optim: Optim) -> Optimizer:
    """Two groups: decayed (matrices and tokens) and not decayed (1-D tensors and biases).

    Raises:
        UsageError: unknown optimiser.
    """
    named = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or n.endswith(".bias")]
    rest = [p for n, p in named if not (p.ndim < 2 or n.endswith(".bias"))]
    groups = [
        {"params": rest, "decay": True, "weight_decay": optim.weight_decay},
        {"params": plain, "decay": False, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.beta1)
    if optim.name == "lars":
        return Lars(groups, lr=optim.lr, momentum=optim.beta1)
    raise unknown("optimiser", optim.name, NAMES)


def set_rates(optimiser: Optimizer, optim: Optim, clock: Clock) -> None:
    """Sets this step's learning rate and weight decay."""
    lr, decay = learning_rate(optim, clock), weight_decay(optim, clock)
    for group in optimiser.param_groups:
        group["lr"] = lr
        if group["decay"]:
            group["weight_decay"] = decay


def clip_gradients(parameters: Iterable[nn.Parameter], optim: Optim) -> None:
    """Shortens gradients longer than `optim.clip`: all together, or (DINO) each tensor alone.

    The factor is max_norm / (norm + 1e-6), at most 1 (torch's, and DINO's utils.clip_gradients).

    Raises:
        UsageError: `clip_by` is neither "global" nor "tensor".
    """
    if optim.clip is None:
        return
    if optim.clip_by not in ("global", "tensor"):
        raise unknown("way to clip", optim.clip_by, ("global", "tensor"))
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    norms = _norms(grads)
    if optim.clip_by == "global":
        norms = [torch.linalg.vector_norm(torch.stack(norms))] * len(grads)
    factors = [(optim.clip / (n + 1e-6)).clamp(max=1.0) for n in norms]
    torch._foreach_mul_(grads, factors)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together: a scalar on their device, fp32 at least; 0 if none."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(_norms(grads)))


def _norms(grads: list[Tensor]) -> list[Tensor]:
    """Norm of each tensor, in fp32 at least: squares of bf16 or fp16 lose or overflow."""
    wide = torch.float32
    for dtype in {g.dtype for g in grads}:
        wide = torch.promote_types(wide, dtype)
    return list(torch._foreach_norm(grads, 2, dtype=wide))

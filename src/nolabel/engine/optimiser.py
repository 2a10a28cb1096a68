"""Optimisers with the papers' parameter groups, schedules and clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nolabel import distributed
from nolabel.backbones.depth import layer_numbers, skips_weight_decay
from nolabel.engine.lars import Lars
from nolabel.errors import unknown
from nolabel.nn.schedules import learning_rate, weight_decay
from nolabel.types import Clock, Optim

NAMES = ("adamw", "sgd", "lars", "larc")
CLIPS = ("global", "tensor", "module")


def build_optimiser(method: nn.Module, optim: Optim) -> Optimizer:
    """The optimiser, with parameter groups by weight decay and learning rate.

    Weight matrices and tokens are decayed; biases and other 1-D tensors are not
    (`decays`). The learning rate may grow from layer to layer (`layer_numbers`).

    Raises:
        UsageError: unknown optimiser.
    """
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    named = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    layers, last = layer_numbers(n for n, _ in named)
    for name, p in named:
        plain = skips_weight_decay(name, p)
        decay = decays(name, p, optim)
        scale = optim.lr_plain / optim.lr if plain and optim.lr_plain is not None else 1.0
        scale *= optim.lr_patch if ".patch_embed." in name else 1.0
        scale *= optim.layer_decay ** (last - layers[name])
        new = {"params": [], "decay": decay, "scale": scale,
               "weight_decay": optim.weight_decay if decay else 0.0}  # fmt: skip
        groups.setdefault((decay, scale), new)["params"].append(p)
    # Decayed groups first, whatever the order of the modules: checkpoints depend on this order.
    ordered = [groups[k] for k in sorted(groups, key=lambda k: (not k[0], k[1]))]
    lr, beta = optim.lr, optim.beta1
    if optim.name == "adamw":
        betas = (beta, optim.beta2)
        return torch.optim.AdamW(ordered, lr=lr, betas=betas, eps=optim.eps, fused=True)
    if optim.name == "sgd":
        return torch.optim.SGD(ordered, lr=lr, momentum=beta)
    if optim.name in ("lars", "larc"):
        return Lars(ordered, lr=lr, momentum=beta, larc=optim.name == "larc")
    raise unknown("optimiser", optim.name, NAMES)


def decays(name: str, p: Tensor, optim: Optim) -> bool:
    """Whether a parameter has weight decay: all but 1-D tensors and biases, unless `optim` names it
    or all."""
    if name.endswith(optim.undecayed):
        return False
    return optim.decay_all or name.endswith(optim.decayed) or not skips_weight_decay(name, p)


def set_rates(optimiser: Optimizer, optim: Optim, clock: Clock) -> None:
    """Sets this step's learning rate and weight decay."""
    lr, decay = learning_rate(optim, clock), weight_decay(optim, clock)
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]
        if group["decay"]:
            group["weight_decay"] = decay


def decay_in_use(optimiser: Optimizer) -> float:
    """The weight decay of the group that has one, as last set; 0 if no group decays."""
    decays = [float(g["weight_decay"]) for g in optimiser.param_groups if g["decay"]]
    return decays[-1] if decays else 0.0


def clip_gradients(method: nn.Module, optim: Optim) -> None:
    """Clips gradients to the norm `optim.clip`.

    The norm is that of all gradients together, of each tensor (DINO), or of each network, that is
    each child of a child of the method (DINOv2: the backbone, each head). The factor is
    max_norm / (norm + 1e-6), at most 1 (as in torch, and in DINO's utils.clip_gradients).

    Raises:
        UsageError: `clip_by` is unknown.
    """
    if optim.clip is None:
        return
    if optim.clip_by not in CLIPS:
        raise unknown("clip_by", optim.clip_by, CLIPS)
    named = [(n, p.grad) for n, p in method.named_parameters() if p.grad is not None]
    if not named:
        return
    grads = [g for _, g in named]
    norms = distributed.tensor_norms(grads)
    if optim.clip_by != "tensor":
        by_module = optim.clip_by == "module"
        keys = [".".join(n.split(".")[:2]) if by_module else "" for n, _ in named]
        joint = {
            key: torch.linalg.vector_norm(
                torch.stack([n for n, k in zip(norms, keys, strict=True) if k == key])
            )
            for key in dict.fromkeys(keys)
        }
        norms = [joint[key] for key in keys]
    factors = [(optim.clip / (n + 1e-6)).clamp(max=1.0) for n in norms]
    torch._foreach_mul_([distributed.local_shard(g) for g in grads], factors)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together: a scalar on their device, fp32 at least; 0 if none."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(distributed.tensor_norms(grads)))

"""The optimisers LARS and LARC."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nolabel.distributed import tensor_norms


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), as MoCo v3 and
    Barlow Twins use it: weight decay, then the trust ratio, then momentum.

    The learning rate of a decayed tensor is scaled by eta * |w| / |g + decay * w|; tensors of the
    group without decay (1-D, biases) are neither decayed nor scaled.

    As LARC (`larc=True`, for SwAV and DeepCluster v2) the ratio is eta * |w| / (|g| + decay * |w|)
    and every tensor is scaled, but a tensor whose norm or gradient is 0 is neither decayed nor
    scaled. The 1e-8 that the official code adds to the denominator is left out.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        larc: bool = False,
    ):
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta,
            "decay": True, "larc": larc,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            decay, larc = group["weight_decay"], group["larc"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if group["decay"] or larc:
                    update = update.add(p, alpha=decay)
                    w, g, moved = tensor_norms([p, p.grad, update])
                    u, force = (g + decay * w, g) if larc else (moved, moved)
                    scaled = (w > 0) & (force > 0)
                    ratio = torch.where(scaled, group["eta"] * w / u, 1.0)
                    update = torch.where(scaled, update * ratio, p.grad if larc else update)
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(update)
                p.add_(state["momentum"], alpha=-group["lr"])

"""DINO's head: an MLP to a unit-length bottleneck, and prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.device import in_fp32
from nolabel.types import Clock


class WeightNormLinear(nn.Module):
    """Linear layer without bias with weight normalisation: [..., D] -> [..., K], rows g * v / |v|.

    The parameters `weight_g` [K, 1], initially 1, and `weight_v` [K, D] are named as in the
    official checkpoints, and initialised as there (shorter rows would rotate faster).

    Args:
        dim: D.
        out: K.
        train_norm: whether `weight_g` is trained.
    """

    def __init__(self, dim: int, out: int, *, train_norm: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out, 1), requires_grad=train_norm)
        self.weight_v = nn.Parameter(torch.empty(out, dim))
        nn.init.uniform_(self.weight_v, -(dim**-0.5), dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        # torch's fused kernel: this is the largest matrix of most networks.
        weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
        if not torch.is_autocast_enabled(x.device.type):
            return F.linear(x, weight)
        # bf16 rounds logits near 1 to multiples of 1/256, too coarse if all rows are nearly equal.
        # So the mean row's logits are computed in fp32, and only the differences in bf16.
        rows = x.detach().float().flatten(0, -2)
        mean = rows.sum(0) / max(len(rows), 1)
        return F.linear(x - mean, weight) + in_fp32(F.linear)(mean[None], weight)


class PrototypeHead(nn.Module):
    """DINO's head (appendix C): [..., D] -> logits [..., K]. An MLP of three layers with GELU, a
    unit-length bottleneck, and weight-normalised prototypes.

    Args:
        dim: D.
        prototypes: K.
        hidden: width of the two hidden layers.
        bottleneck: width of the bottleneck.
        norm_last_layer: prototypes keep norm 1; False: their norms are trained.
        batch_norm: batch norm after each hidden layer; then the input has to be [N, D].
    """

    def __init__(
        self,
        dim: int,
        prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width in (dim, hidden):
            norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
            layers += [nn.Linear(width, hidden), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                layer.bias.data.zero_()
        self.last_layer = WeightNormLinear(bottleneck, prototypes, train_norm=not norm_last_layer)

    def bottleneck(self, x: Tensor) -> Tensor:
        """[..., D] -> unit vectors [..., bottleneck], the input of `last_layer`."""
        return in_fp32(F.normalize)(self.mlp(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> logits [..., K]."""
        return self.last_layer(self.bottleneck(x))

    def freeze_first_epochs(self, epochs: float, clock: Clock) -> None:
        """Drops the gradient of the prototypes in the first epochs, maybe a fraction of one."""
        if clock.step < epochs * clock.steps_per_epoch:
            for p in self.last_layer.parameters():
                p.grad = None

"""Heads on top of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows are g * v / |v| (weight normalisation).

    `weight_g` [K, 1] starts at 1 and `weight_v` is [K, D]: the names of the official files.
    """

    def __init__(self, dim: int, out: int, *, train_norm: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out, 1), requires_grad=train_norm)
        self.weight_v = nn.Parameter(torch.empty(out, dim))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        # In one pass: this is the largest matrix of most networks.
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class PrototypeHead(nn.Module):
    """DINO's head: three layers, a unit-length bottleneck, weight-normalised prototypes.

    `batch_norm` stands after each hidden layer, as the official code offers it.
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
        """[..., D] -> unit vectors [..., bottleneck], what the prototypes are compared with."""
        return F.normalize(self.mlp(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> logits [..., K]."""
        return self.last_layer(self.bottleneck(x))


class ProjectionHead(nn.Module):
    """SimCLR's non-linear projection g(h): linear, batch norm, ReLU, linear, batch norm without
    bias (the official code's two-layer head)."""

    def __init__(self, dim: int, hidden: int, out: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, out, bias=False),
            nn.BatchNorm1d(out),
        )
        last: Any = self.layers[-1]
        last.bias.requires_grad_(False)  # zero, and stays

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def mlp(
    widths: Sequence[int],
    *,
    norm: bool = True,
    bias: bool = True,
    last_bias: bool | None = None,
    last_norm: bool = False,
) -> nn.Sequential:
    """Linear layers between `widths`, with batch norm and ReLU after each but the last.

    Args:
        widths: of the input, the hidden layers and the output.
        norm: batch norm before each ReLU.
        bias: of the linear layers; `last_bias` for the last one, by default the same.
        last_norm: batch norm without scale and shift behind the last layer (MoCo v3).
    """
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(a, b, bias=bias), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    layers.append(nn.Linear(*widths[-2:], bias=bias if last_bias is None else last_bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def describe(module: nn.Module) -> dict[str, Any]:
    """Parameter counts of each child, for --dry-run."""
    return {name: count_parameters(child) for name, child in module.named_children()}

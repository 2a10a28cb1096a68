"""Projectors and predictors: MLPs on top of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """SimCLR's projection head g, [N, D] -> [N, out]: linear, batch norm, ReLU, linear, batch norm
    without bias (the official code's two-layer head).

    Args:
        dim: D.
        hidden: width of the hidden layer.
        out: width of z.
    """

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
        last.bias.requires_grad_(False)  # stays 0

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
    """An MLP [N, widths[0]] -> [N, widths[-1]]: batch norm and ReLU after each linear layer but the
    last.

    Args:
        widths: of the input, the hidden layers and the output.
        norm: batch norm before each ReLU.
        bias: whether linear layers have biases.
        last_bias: whether the last one has; by default as `bias`.
        last_norm: batch norm without scale and shift after the last layer (MoCo v3).
    """
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(a, b, bias=bias), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    layers.append(nn.Linear(*widths[-2:], bias=bias if last_bias is None else last_bias))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)

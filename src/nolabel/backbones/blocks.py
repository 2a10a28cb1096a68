"""The transformer block of timm, for decoders and predictors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from nolabel import distributed


class Block(TimmBlock):
    """Pre-norm block, MLP ratio 4, biases everywhere, LayerNorm eps 1e-6."""

    def __init__(self, dim: int, heads: int):
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it like a class
        super().__init__(dim, heads, qkv_bias=True, norm_layer=norm)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): while training a branch is left out
    of some samples, and the others' is scaled so that its mean stays.

    As timm's, but that processes with the same random state leave out different samples.

    Args:
        drop_prob: share of the samples that go without, in [0, 1).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        kept = 1.0 - self.drop_prob
        coins = distributed.share(lambda n: x.new_empty(n).bernoulli_(kept), len(x)) / kept
        return x * coins.view(-1, *(1,) * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"{self.drop_prob:g}"


def random_order(n: int, device: torch.device) -> Tensor:
    """A permutation of n rows, int64 [n]; processes with the same random state get different
    ones."""
    return distributed.share(lambda total: torch.rand(total, device=device), n).argsort()


def swiglu(in_features: int, hidden_features: int, **kwargs: Any) -> nn.Module:
    """A gated MLP of about as many weights as a plain one of `hidden_features`: two thirds as
    wide, rounded up to a multiple of 8 (DINOv2's giant)."""
    width = (int(hidden_features * 2 / 3) + 7) // 8 * 8
    kwargs["act_layer"] = nn.SiLU
    return SwiGLUPacked(in_features, hidden_features=2 * width, **kwargs)

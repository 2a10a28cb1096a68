"""The transformer block of timm, for decoders and predictors."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn


class Block(TimmBlock):
    """Pre-norm block, MLP ratio 4, biases everywhere, LayerNorm eps 1e-6."""

    def __init__(self, dim: int, heads: int):
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it like a class
        super().__init__(dim, heads, qkv_bias=True, norm_layer=norm)


def swiglu(in_features: int, hidden_features: int, **kwargs: Any) -> nn.Module:
    """A gated MLP of about as many weights as a plain one of `hidden_features`: two thirds as
    wide, rounded up to a multiple of 8 (DINOv2's giant)."""
    width = (int(hidden_features * 2 / 3) + 7) // 8 * 8
    kwargs["act_layer"] = nn.SiLU
    return SwiGLUPacked(in_features, hidden_features=2 * width, **kwargs)

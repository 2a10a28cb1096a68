"""The transformer block of timm, for decoders and predictors."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.vision_transformer import Block as TimmBlock
from torch import nn


class Block(TimmBlock):
    """Pre-norm block, MLP ratio 4, biases everywhere, LayerNorm eps 1e-6."""

    def __init__(self, dim: int, heads: int):
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it like a class
        super().__init__(dim, heads, qkv_bias=True, norm_layer=norm)

"""The transformer block of timm: for decoders and predictors, and for its first token alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import Attention, SwiGLUPacked
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from nolabel import distributed


class Block(TimmBlock):
    """Pre-norm block, MLP ratio 4, biases everywhere, LayerNorm eps 1e-6."""

    def __init__(self, dim: int, heads: int):
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it like a class
        super().__init__(dim, heads, qkv_bias=True, norm_layer=norm)


def makes_first_alone(block: Any) -> bool:
    """Whether `first_alone` makes what the block would: a plain one of timm's, without dropout,
    whose weights are at hand."""
    a = block.attn
    if type(block) is not TimmBlock or type(a) is not Attention:
        return False
    if getattr(a, "gate", None) is not None:
        return False
    if block.training and (a.attn_drop.p or a.proj_drop.p):
        return False
    # Sharded by layers, weights are put together only where their module is called.
    return distributed.local_shard(a.qkv.weight) is a.qkv.weight


def first_alone(block: Any, x: Tensor) -> Tensor:
    """What a block makes of the first of tokens [N, T, D], as [N, 1, D].

    Of the other tokens it computes the keys and values that the first one looks at, a sixth of the
    block, and of stochastic depth it draws what the whole block would.
    """
    a, y = block.attn, block.norm1(x)
    d = a.qkv.weight.shape[0] // 3
    weight = a.qkv.weight.split((d, 2 * d))
    bias = (None, None) if a.qkv.bias is None else a.qkv.bias.split((d, 2 * d))
    q = F.linear(y[:, :1], weight[0], bias[0]).unflatten(-1, (a.num_heads, -1)).transpose(1, 2)
    both = F.linear(y, weight[1], bias[1]).unflatten(-1, (2, a.num_heads, -1))
    k, v = both.permute(2, 0, 3, 1, 4)
    attention = ((a.q_norm(q) * a.scale) @ a.k_norm(k).transpose(-2, -1)).softmax(-1)
    seen = (attention.to(v.dtype) @ v).transpose(1, 2).flatten(2)
    x = x[:, :1] + block.drop_path1(block.ls1(a.proj(a.norm(seen))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


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
        coins = distributed.draw_for_rank(lambda n: x.new_empty(n).bernoulli_(kept), len(x)) / kept
        return x * coins.view(-1, *(1,) * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"{self.drop_prob:g}"


def random_order(n: int, device: torch.device) -> Tensor:
    """A permutation of n rows, int64 [n]; processes with the same random state get different
    ones."""
    return distributed.draw_for_rank(lambda total: torch.rand(total, device=device), n).argsort()


def swiglu(in_features: int, hidden_features: int, **kwargs: Any) -> nn.Module:
    """A gated MLP of about as many weights as a plain one of `hidden_features`: two thirds as
    wide, rounded up to a multiple of 8 (DINOv2's giant)."""
    width = (int(hidden_features * 2 / 3) + 7) // 8 * 8
    kwargs["act_layer"] = nn.SiLU
    return SwiGLUPacked(in_features, hidden_features=2 * width, **kwargs)

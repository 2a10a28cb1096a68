"""timm's transformer block: for decoders, and computed for its first token only; stochastic depth,
SwiGLU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import Attention, SwiGLUPacked
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from nolabel import distributed


class Block(TimmBlock):
    """Pre-norm transformer block [N, T, D] -> [N, T, D]: MLP ratio 4, biases everywhere, LayerNorm
    eps 1e-6."""

    def __init__(self, dim: int, heads: int):
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it like a class
        super().__init__(dim, heads, qkv_bias=True, norm_layer=norm)


def supports_first_token_only(block: Any) -> bool:
    """Whether `first_token_only` computes what the block would: timm's own block, without dropout,
    with weights that are not sharded."""
    a = block.attn
    if type(block) is not TimmBlock or type(a) is not Attention:
        return False
    if getattr(a, "gate", None) is not None:
        return False
    if block.training and (a.attn_drop.p or a.proj_drop.p):
        return False
    # FSDP2 all-gathers sharded weights in the module's forward hook, which is not called here.
    return distributed.local_shard(a.qkv.weight) is a.qkv.weight


def first_token_only(block: Any, x: Tensor) -> Tensor:
    """The first output token of a block, [N, T, D] -> [N, 1, D].

    Of the other tokens only keys and values are computed, a sixth of the block. Stochastic depth
    draws the same random numbers as the full block.
    """
    a, y = block.attn, block.norm1(x)
    d = a.qkv.weight.shape[0] // 3
    weight = a.qkv.weight.split((d, 2 * d))
    bias = (None, None) if a.qkv.bias is None else a.qkv.bias.split((d, 2 * d))
    q = F.linear(y[:, :1], weight[0], bias[0]).unflatten(-1, (a.num_heads, -1)).transpose(1, 2)
    kv = F.linear(y, weight[1], bias[1]).unflatten(-1, (2, a.num_heads, -1))
    k, v = kv.permute(2, 0, 3, 1, 4)
    attention = ((a.q_norm(q) * a.scale) @ a.k_norm(k).transpose(-2, -1)).softmax(-1)
    mixed = (attention.to(v.dtype) @ v).transpose(1, 2).flatten(2)
    x = x[:, :1] + block.drop_path1(block.ls1(a.proj(a.norm(mixed))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): in training, the branch [N, ...] is
    zero for some samples, and divided by 1 - drop_prob for the others.

    As timm's, except that ranks with the same random state drop different samples.

    Args:
        drop_prob: share of the samples whose branch is dropped, in [0, 1).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        keep = 1.0 - self.drop_prob
        scale = distributed.draw_for_rank(lambda n: x.new_empty(n).bernoulli_(keep), len(x)) / keep
        return x * scale.view(-1, *(1,) * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"{self.drop_prob:g}"


def set_drop_paths(blocks: Sequence[nn.Module], rate: float, *branches: str) -> None:
    """Stochastic depth that grows linearly from 0 in the first block to `rate` in the last.

    Args:
        blocks: timm's, from the first to the last.
        rate: share of samples whose branch is dropped in the last block, in [0, 1); 0 = none.
        branches: attributes of a block that hold the `DropPath` of a branch.
    """
    for i, block in enumerate(blocks):
        p = rate * i / max(len(blocks) - 1, 1)
        for branch in branches:
            setattr(block, branch, DropPath(p) if p else nn.Identity())


def random_order(n: int, device: torch.device) -> Tensor:
    """A random permutation, int64 [n]; ranks with the same random state get different ones."""
    return distributed.draw_for_rank(lambda total: torch.rand(total, device=device), n).argsort()


def swiglu(in_features: int, hidden_features: int, **kwargs: Any) -> nn.Module:
    """The gated MLP of DINOv2's giant ViT, with about as many weights as an MLP of width
    `hidden_features`: two thirds as wide, rounded up to a multiple of 8. For timm's `mlp_layer`."""
    width = (int(hidden_features * 2 / 3) + 7) // 8 * 8
    kwargs["act_layer"] = nn.SiLU
    return SwiGLUPacked(in_features, hidden_features=2 * width, **kwargs)

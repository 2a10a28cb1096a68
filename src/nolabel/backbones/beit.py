"""timm's Beit as a backbone: a ViT with relative position bias.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers", 2021, arXiv 2106.08254. The bias table
fits one size of the patch grid, so the network takes one size of images; `backbones.at_size` makes
one for another size, whose table timm interpolates. Weights and their names are timm's, the forward
pass is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from timm.models.beit import Beit
from torch import Tensor, nn

from nolabel.backbones.base import (
    FACETS,
    Backbone,
    layer_number,
    refuse_by_samples,
    require,
    resolve_facets,
)
from nolabel.backbones.blocks import set_drop_paths
from nolabel.errors import UsageError
from nolabel.types import Tokens


class BEiT(Backbone):
    """A Beit of any width, depth and patch, for images of the size that it was built for."""

    can = frozenset({"mask", "attention", "patches"})
    net: Any  # timm's Beit, whose type stubs lack the layers

    def __init__(self, net: Any, name: str, kwargs: dict[str, Any]):
        super().__init__()
        beit: Any = Beit  # Any: isinstance would narrow `net` to the attributes that timm declares
        if not isinstance(net, beit):
            raise UsageError(f"{name!r} is not a Beit of timm.")
        self.net, self.name, self.kwargs = net, name, dict(kwargs)
        self.dim, self.depth = net.embed_dim, len(net.blocks)
        self.image_size = net.patch_embed.img_size[0]
        self.patch_size = net.patch_embed.patch_size[0]

    def resized(self, image_size: int) -> BEiT:
        """A copy for images of `image_size` pixels: position embeddings and bias interpolated.

        Raises:
            UsageError: a size that is no multiple of the patch.
        """
        if image_size < self.patch_size or image_size % self.patch_size:
            raise UsageError(
                f"Image size {image_size} does not divide into patches of {self.patch_size} pixels."
                f" Use a multiple of {self.patch_size}."
            )
        new = copy.deepcopy(self)
        new.net.set_input_size(img_size=(image_size, image_size))
        new.image_size, new.kwargs["img_size"] = image_size, image_size
        return new

    def _embed(
        self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Any, tuple[int, int]]:
        """Input of the first block [N, 1 + P, D], the shared position bias or None, and the
        grid."""
        net, s = self.net, self.image_size
        if x.shape[-2:] != (s, s):
            raise UsageError(
                f"{self.name!r} has relative positions for images of {s} x {s} pixels; got "
                f"{x.shape[-2]} x {x.shape[-1]}. Load it with --image-size {x.shape[-1]}."
            )
        x = net.patch_embed(x)
        if mask is not None:
            if mask_token is None:
                raise UsageError("A mask needs mask_token, the embedding of hidden patches.")
            x = torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype).view(1, 1, -1), x)
        x = torch.cat([net.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        if net.pos_embed is not None:
            x = x + net.pos_embed
        bias = None if net.rel_pos_bias is None else net.rel_pos_bias()
        return net.pos_drop(x), bias, net.patch_embed.grid_size

    def _tokens(self, x: Tensor, grid: tuple[int, int]) -> Tokens:
        """`Tokens` of the normed output [N, 1 + P, D] of the last block."""
        pooled = x[:, 1:].mean(1) if self.net.global_pool == "avg" else x[:, 0]
        return Tokens(self.net.fc_norm(pooled), x[:, 1:], grid, x[:, :1])

    @property
    def shard_units(self) -> list[nn.Module]:
        return [part for block in self.net.blocks for part in (block.attn, block.mlp)]

    @property
    def compile_units(self) -> list[nn.Module]:
        return list(self.net.blocks)

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        require(self, [] if keep is None else ["drop"], "tokens")
        x, bias, grid = self._embed(x, mask, mask_token)
        for block in self.net.blocks:
            x = self._block_by_block(block, x, bias)
        return self._tokens(self.net.norm(x), grid)

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        x, bias, grid = self._embed(x)
        out = []
        for i, block in enumerate(self.net.blocks):
            x = block(x, shared_rel_pos_bias=bias)
            if i >= self.depth - n:
                out.append(self._tokens(self.net.norm(x), grid))
        return out

    def _input_of(self, x: Tensor, layer: int) -> tuple[Tensor, Any, tuple[int, int]]:
        """Input of a layer [N, 1 + P, D], the shared position bias or None, and the grid."""
        x, bias, grid = self._embed(x)
        for block in self.net.blocks[: layer_number(self, layer)]:
            x = block(x, shared_rel_pos_bias=bias)
        return x, bias, grid

    def _qkv(self, x: Tensor, layer: int) -> Tensor:
        """Queries, keys and values [3, N, heads, T, D/heads] of the input [N, T, D] of a layer."""
        block = self.net.blocks[layer]
        a = block.attn
        bias = None if a.q_bias is None else torch.cat([a.q_bias, a.k_bias, a.v_bias])
        qkv = F.linear(block.norm1(x), a.qkv.weight, bias)
        return qkv.unflatten(-1, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def attention(self, x: Tensor, layer: int = -1, rows: slice = slice(None)) -> Tensor:
        x, bias, _ = self._input_of(x, layer)
        q, k, _ = self._qkv(x, layer)
        a = self.net.blocks[layer].attn
        scores = (q[:, :, rows] * a.scale) @ k.transpose(-2, -1)
        if a.relative_position_bias_table is not None:
            scores = scores + a._get_rel_pos_bias()[:, :, rows]
        if bias is not None:
            scores = scores + bias[..., rows, :]
        return scores.softmax(-1)

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        facets = resolve_facets(self, wanted)
        deepest, tokens_of = max(layer for layer, _ in facets), {}
        x, bias, grid = self._embed(x)
        for i in range(deepest + 1):
            needed = {which for layer, which in facets if layer == i}
            out = {}
            if needed - {"token"}:
                out = dict(zip(FACETS[:3], self._qkv(x, i).transpose(2, 3).flatten(3), strict=True))
            if i < deepest or "token" in needed:
                x = self.net.blocks[i](x, shared_rel_pos_bias=bias)
                out["token"] = x
            for which in needed:
                y = out[which]
                tokens_of[i, which] = Tokens(y[:, 0], y[:, 1:], grid, y[:, :1])
        return [tokens_of[facet] for facet in facets]

    def dense_embeddings(self, x: Tensor) -> Tokens:
        net = self.net
        if net.global_pool == "avg":
            t = self.tokens(x)
            return Tokens(t.pooled, net.fc_norm(t.patches), t.grid, t.prefix)
        x, _, grid = self._input_of(x, -1)
        block = net.blocks[-1]
        y = block.attn.proj(self._qkv(x, -1)[2].transpose(1, 2).flatten(2))
        y = net.fc_norm(net.norm(y if block.gamma_1 is None else block.gamma_1 * y))
        return Tokens(y[:, 0], y[:, 1:], grid, y[:, :1])

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        refuse_by_samples(self, by_samples)
        set_drop_paths(self.net.blocks, rate, "drop_path1", "drop_path2")

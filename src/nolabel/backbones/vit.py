"""timm's VisionTransformer as a backbone.

Weights and their names are timm's; the forward pass is ours, because timm's `forward` lacks what
methods need: mask tokens, dropped patches, any image size, one layer's attention.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import LayerScale
from torch import Tensor, nn

from nolabel.backbones.base import FACETS, Backbone, layer_number, resolve_facets
from nolabel.backbones.blocks import (
    first_token_only,
    random_order,
    set_drop_paths,
    supports_first_token_only,
)
from nolabel.errors import UsageError, unknown
from nolabel.types import Tokens

POSITIONS = ("dino", "mae", "timm")  # conventions of `resize_positions`


def resize_positions(
    pos: Tensor, grid: tuple[int, int], new: tuple[int, int], convention: str
) -> Tensor:
    """Interpolates patch position embeddings to another grid (bicubic), with gradient.

    There are three conventions, which differ slightly: "dino" takes the scale factor (new + 0.1) /
    old, without antialias (DINO, iBOT, DINOv2 without registers); "mae" the exact size without
    antialias (MAE, BEiT, EVA); "timm" the exact size with antialias (timm, DINOv2 with registers).

    Args:
        pos: float [1, h*w, D].
        grid: (h, w) of `pos`.
        new: (h, w) of the result.
        convention: "dino", "mae" or "timm".

    Returns:
        [1, h*w, D] of the new grid, of pos's dtype.
    """
    if grid == new:
        return pos
    x = pos.reshape(1, *grid, -1).permute(0, 3, 1, 2).float()
    if convention == "dino":
        # interpolate() samples by the given factor, not by the ratio of the sizes.
        scale = ((new[0] + 0.1) / grid[0], (new[1] + 0.1) / grid[1])
        x = F.interpolate(x, scale_factor=scale, mode="bicubic")
    else:
        x = F.interpolate(x, size=new, mode="bicubic", antialias=convention == "timm")
    return x.permute(0, 2, 3, 1).flatten(1, 2).to(pos.dtype)


def fit_positions(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], vit: ViT
) -> dict[str, Tensor]:
    """A state_dict with the position embeddings of ViTs interpolated to the shapes in `like`.

    Args:
        state: a state_dict of `vit`, or of a module that contains ViTs like it.
        like: a state_dict with the shapes wanted.
        vit: says how many prefix tokens there are, and the convention.
    """
    out = dict(state)
    skip = 0 if vit.net.no_embed_class else vit.net.num_prefix_tokens
    for name, new in like.items():
        old = out.get(name)
        if old is not None and name.endswith("net.pos_embed") and old.shape != new.shape:
            a, b = (math.isqrt(x.shape[1] - skip) for x in (old, new))  # square grids
            patches = resize_positions(old[:, skip:], (a, a), (b, b), vit.positions)
            out[name] = torch.cat([old[:, :skip], patches], 1)
    return out


class ViT(Backbone):
    """A VisionTransformer of any width, depth, patch and image size."""

    can = frozenset({"mask", "drop", "any_size", "attention", "stride", "patches"})
    net: Any  # timm's VisionTransformer, whose type stubs lack the layers
    sample_drop = 0.0  # share of the samples that each branch of a block drops (DINOv2)

    def __init__(self, net: Any, name: str, kwargs: dict[str, Any], positions: str = "dino"):
        super().__init__()
        if positions not in POSITIONS:
            raise unknown("convention for positions", positions, POSITIONS)
        if not isinstance(net, timm.models.VisionTransformer) or net.attn_pool is not None:
            raise UsageError(f"{name!r} is not a plain vision transformer of timm.")
        self.net = net
        self.name, self.kwargs, self.positions = name, dict(kwargs), positions
        self.dim, self.depth = net.embed_dim, len(net.blocks)
        self.image_size = net.patch_embed.img_size[0]
        self.patch_size = self.stride = net.patch_embed.patch_size[0]

    @contextlib.contextmanager
    def with_stride(self, stride: int) -> Iterator[None]:
        p, conv = self.patch_size, self.net.patch_embed.proj
        if stride < 1 or p % stride:
            raise UsageError(f"The stride must divide the patch of {p} px, got {stride}.")
        try:
            self.stride, conv.stride = stride, (stride, stride)
            yield
        finally:
            self.stride, conv.stride = p, (p, p)

    def _embed(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> tuple[Tensor, tuple[int, int]]:
        """Input of the first block [N, R + P, D], and the grid."""
        net, p = self.net, self.patch_size
        height, width = x.shape[-2:]
        if self.stride < p:
            grid = (1 + (height - p) // self.stride, 1 + (width - p) // self.stride)
        elif height % p or width % p or not height or not width:
            raise UsageError(
                f"Image of {height} x {width} pixels does not divide into patches of {p} x {p}. "
                f"Use sides that are multiples of {p}, or a smaller --patch-size."
            )
        else:
            grid = (height // p, width // p)
        x = net.patch_embed.norm(net.patch_embed.proj(x).flatten(2).transpose(1, 2))
        if mask is not None:
            if mask_token is None:
                raise UsageError("A mask needs mask_token, the embedding of hidden patches.")
            x = torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype).view(1, 1, -1), x)
        prefix = [t for t in (net.cls_token, net.reg_token) if t is not None]
        front = torch.cat(prefix, 1) if prefix else x.new_zeros(1, 0, self.dim)
        if net.pos_embed is not None:
            skip = 0 if net.no_embed_class else front.shape[1]
            pos = resize_positions(
                net.pos_embed[:, skip:], net.patch_embed.grid_size, grid, self.positions
            )
            x = x + pos
            if skip:
                front = front + net.pos_embed[:, :skip]
        if keep is not None:
            x = x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([front.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        return net.norm_pre(net.pos_drop(x)), grid

    def _tokens(self, x: Tensor, grid: tuple[int, int]) -> Tokens:
        """`Tokens` of the normed output [N, R + P, D] of the last block."""
        r = self.net.num_prefix_tokens
        pooled = x[:, 0] if self.net.global_pool == "token" and r else x[:, r:].mean(1)
        return Tokens(self.net.fc_norm(pooled), x[:, r:], grid, x[:, :r])

    @property
    def shard_units(self) -> list[nn.Module]:
        return [part for block in self.net.blocks for part in (block.attn, block.mlp)]

    @property
    def compile_units(self) -> list[nn.Module]:
        return self.shard_units if self.sample_drop else list(self.net.blocks)

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        x, grid = self._embed(x, mask, keep, mask_token)
        for block in self.net.blocks:
            x = self._block_by_block(self._block, block, x)
        return self._tokens(self.net.norm(x), grid)

    def forward(self, x: Tensor) -> Tensor:
        """The pooled embedding [N, D] of images [N, C, H, W], as by `tokens`.

        If it is the class token, the last block computes that token only.
        """
        net = self.net
        *blocks, last = net.blocks
        uses_class_token = net.global_pool == "token" and net.num_prefix_tokens
        if (
            not uses_class_token
            or (self.training and self.sample_drop)
            or not supports_first_token_only(last)
        ):
            return super().forward(x)
        x, _ = self._embed(x)
        for block in blocks:
            x = self._block_by_block(self._block, block, x)
        x = self._block_by_block(first_token_only, last, x)
        return net.fc_norm(net.norm(x)[:, 0])

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        x, grid = self._embed(x)
        out = []
        for i, block in enumerate(self.net.blocks):
            x = block(x)
            if i >= self.depth - n:
                out.append(self._tokens(self.net.norm(x), grid))
        return out

    def _qkv(self, x: Tensor, layer: int) -> tuple[Any, Tensor, tuple[int, int]]:
        """The block of one layer, its queries, keys and values [3, N, heads, T, D/heads], and the
        grid."""
        layer = layer_number(self, layer)
        x, grid = self._embed(x)
        for block in self.net.blocks[:layer]:
            x = block(x)
        block = self.net.blocks[layer]
        a = block.attn
        qkv = a.qkv(block.norm1(x))
        return block, qkv.unflatten(-1, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4), grid

    def attention(self, x: Tensor, layer: int = -1, rows: slice = slice(None)) -> Tensor:
        block, (q, k, _), _ = self._qkv(x, layer)
        a = block.attn
        return ((a.q_norm(q[:, :, rows]) * a.scale) @ a.k_norm(k).transpose(-2, -1)).softmax(-1)

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        r, facets = self.net.num_prefix_tokens, resolve_facets(self, wanted)
        deepest = max(layer for layer, _ in facets)
        x, grid = self._embed(x)
        tokens_of: dict[tuple[int, str], Tokens] = {}
        for i, block in enumerate(self.net.blocks[: deepest + 1]):
            needed = {which for layer, which in facets if layer == i}
            out = (
                _project_facets(block.attn.qkv, block.norm1(x), needed - {"token"})
                if needed
                else {}
            )
            if i < deepest or "token" in needed:
                x = block(x)
                out["token"] = x
            for which in needed:
                y = out[which]
                pooled = y[:, 0] if r else y.mean(1)
                tokens_of[i, which] = Tokens(pooled, y[:, r:], grid, y[:, :r])
        return [tokens_of[facet] for facet in facets]

    def dense_embeddings(self, x: Tensor) -> Tokens:
        net, r = self.net, self.net.num_prefix_tokens
        if net.global_pool != "token" or not r:
            t = self.tokens(x)
            return Tokens(t.pooled, net.fc_norm(t.patches), t.grid, t.prefix)
        block, (_, _, v), grid = self._qkv(x, -1)
        y = block.attn.norm(v.transpose(1, 2).flatten(2))
        y = net.fc_norm(net.norm(block.ls1(block.attn.proj(y))))
        return Tokens(y[:, 0], y[:, r:], grid, y[:, :r])

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        self.sample_drop = rate if by_samples else 0.0
        by_path = 0.0 if by_samples else rate
        set_drop_paths(self.net.blocks, by_path, "drop_path1", "drop_path2")

    def _block(self, block: Any, x: Tensor) -> Tensor:
        """One block; in training with `sample_drop`, each branch on a random part of the
        samples."""
        if not (self.training and self.sample_drop):
            return block(x)
        x = self._branch_of_samples(x, lambda y: block.ls1(block.attn(block.norm1(y))))
        return self._branch_of_samples(x, lambda y: block.ls2(block.mlp(block.norm2(y))))

    def _branch_of_samples(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """x [N, T, D] plus a branch computed for a random part of the samples, scaled by
        n / kept so that its expectation stays the same."""
        n = len(x)
        kept = max(int(n * (1 - self.sample_drop)), 1)
        rows = random_order(n, x.device)[:kept]
        return x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=n / kept)

    def set_layer_scale(self, value: float) -> None:
        """Adds LayerScale: a trained factor for each channel of a block's branches, initially
        `value` (Touvron et al. 2021, arXiv 2103.17239). A network that has LayerScale keeps it."""
        if isinstance(self.net.blocks[0].ls1, nn.Identity):
            self.kwargs["init_values"] = value  # so that the encoder file rebuilds it too
            for block in self.net.blocks:
                block.ls1 = LayerScale(self.dim, value)
                block.ls2 = LayerScale(self.dim, value)


def _project_facets(qkv: Any, x: Tensor, which: set[str]) -> dict[str, Tensor]:
    """Those of "query", "key" and "value" [N, T, D] that are in `which`; computes no others."""
    if not which:
        return {}
    weight, bias = qkv.weight.chunk(3), [None] * 3 if qkv.bias is None else qkv.bias.chunk(3)
    return {n: F.linear(x, weight[i], bias[i]) for n in which for i in [FACETS.index(n)]}


def patch_grid(image_size: int, patch_size: int) -> int:
    """The number of patches along one side.

    Args:
        image_size: side of the image, pixels.
        patch_size: side of a patch, pixels.

    Raises:
        UsageError: an image smaller than a patch, or no multiple of it.
    """
    if image_size < patch_size or image_size % patch_size:
        down = image_size // patch_size * patch_size
        nearest = [s for s in (down, down + patch_size) if s]
        raise UsageError(
            f"Image size {image_size} does not divide into patches of {patch_size} pixels. Use "
            f"--image-size {' or '.join(map(str, nearest))}, or a --patch-size that divides it."
        )
    return image_size // patch_size

"""timm's SwinTransformer as a backbone.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021, arXiv
2103.14030. Weights and their names are timm's; the forward pass is ours, because timm's `forward`
has neither mask tokens nor any image size.

Positions of a map attend to each other if they are in the same window: if floor((position - shift)
/ window) is the same along both axes. If windows do not fill the map, timm pads after its cyclic
shift and attends to padding, so that opposite borders share a window and zeros take part. Here the
map is padded before the shift and padding is masked. If windows fill the map, as at all published
sizes, the results are timm's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import FACETS, Backbone, refuse_by_samples, require, resolve_facets
from nolabel.backbones.blocks import set_drop_paths
from nolabel.errors import UsageError
from nolabel.types import Tokens


def windows_of(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """The window of each position along one axis, in the order after the cyclic shift.

    Args:
        size: positions along the axis.
        window: positions of a window.
        shift: of the cyclic shift, in positions.
        device: of the result.

    Returns:
        int64 [size rounded up to a multiple of window]: floor((position - shift) / window), which
        is -1 for positions that the cyclic shift moves from the start to the end; -2 for padding.
    """
    padded = -(-size // window) * window
    position = (torch.arange(padded, device=device) + shift) % padded
    number = torch.div(position - shift, window, rounding_mode="floor")
    return number.masked_fill(position >= size, -2)


class Swin(Backbone):
    """A SwinTransformer of any width, depth, patch, window and image size.

    `patch_size` is the stride of the final tokens, `mask_patch` the side of the embedded patches,
    which are merged from stage to stage. A layer is a block; `layers` before the last stage are
    narrower, and not normed, because the final norm has the last stage's width.
    """

    can = frozenset({"mask", "any_size", "patches"})
    net: Any  # timm's SwinTransformer, whose type stubs lack the layers

    def __init__(self, net: Any, name: str, kwargs: dict[str, Any]):
        super().__init__()
        swin: Any = timm.models.SwinTransformer  # Any: isinstance would narrow `net`
        if not isinstance(net, swin):
            raise UsageError(f"{name!r} is not a SwinTransformer (version 1) of timm.")
        self.net, self.name, self.kwargs = net, name, dict(kwargs)
        self.dim = net.num_features
        self.depth = sum(len(stage.blocks) for stage in self.net.layers)
        self.image_size = self.net.patch_embed.img_size[0]
        self.patch_size = self.mask_patch * 2 ** (len(self.net.layers) - 1)
        self._check(self.image_size, self.image_size)

    @property
    def shard_units(self) -> list[nn.Module]:
        return [block.mlp for stage in self.net.layers for block in stage.blocks]

    @property
    def mask_patch(self) -> int:
        return int(self.net.patch_embed.patch_size[0])

    @property
    def mask_dim(self) -> int:
        return int(self.net.patch_embed.proj.out_channels)

    def _check(self, height: int, width: int) -> None:
        p = self.patch_size
        if height % p or width % p or not height or not width:
            raise UsageError(
                f"Image of {height} x {width} pixels does not fit {self.name!r}: patches of "
                f"{self.mask_patch} x {self.mask_patch} are merged into tokens of {p} x {p}. Use "
                f"sides that are multiples of {p}, or a smaller --patch-size."
            )

    def _embed(
        self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Patch embeddings [N, H / mask_patch, W / mask_patch, mask_dim]."""
        height, width = x.shape[-2:]
        self._check(height, width)
        embed, p = self.net.patch_embed, self.mask_patch
        x = embed.norm(embed.proj(x).permute(0, 2, 3, 1))  # [N, h, w, D]
        if mask is None:
            return x
        if mask_token is None:
            raise UsageError("A mask needs mask_token, the embedding of hidden patches.")
        h, w = x.shape[1:3]
        times = 1 if mask.shape[1] == h * w else self.patch_size // p
        mask = mask.unflatten(1, (h // times, w // times))
        mask = mask.repeat_interleave(times, 1).repeat_interleave(times, 2)
        return torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype).view(1, 1, 1, -1), x)

    def _blocks(self, x: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Each block with its input and its output, both [N, h, w, D]."""
        for stage in self.net.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                before = x
                x = self._block_by_block(self._block, block, x)
                yield block, before, x

    def _block(self, block: Any, x: Tensor) -> Tensor:
        x = x + block.drop_path1(self._attend(block, block.norm1(x)))
        return x + block.drop_path2(block.mlp(block.norm2(x)))

    @staticmethod
    def _attend(block: Any, x: Tensor) -> Tensor:
        """Windowed attention [N, h, w, D] -> [N, h, w, D]; windows are shifted in odd blocks."""
        a, size, full = block.attn, x.shape[1:3], block.attn.window_size
        # A map smaller than a window is one window, which uses fewer relative offsets.
        (r, c) = (min(s, f) for s, f in zip(size, full, strict=True))
        odd = any(block.target_shift_size)
        down, right = (f // 2 if odd and s > f else 0 for s, f in zip(size, full, strict=True))
        x = F.pad(x, (0, 0, 0, -size[1] % c, 0, -size[0] % r))
        n, height, width, _ = x.shape
        h, w, area = height // r, width // c, r * c
        if odd:
            x = x.roll((-down, -right), (1, 2))
        x = x.reshape(n, h, r, w, c, -1).transpose(2, 3).reshape(n, h * w, area, -1)

        q, k, v = a.qkv(x).unflatten(-1, (3, a.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        index = a.relative_position_index.view(*full, *full)[:r, :c, :r, :c].reshape(-1)
        bias = a.relative_position_bias_table[index].view(area, area, -1).permute(2, 0, 1)
        logits = (q * a.scale) @ k.transpose(-2, -1) + bias  # [N, windows, heads, area, area]
        if down or right or (height, width) != tuple(size):
            rows = windows_of(size[0], r, down, x.device).view(h, 1, r, 1)
            columns = windows_of(size[1], c, right, x.device).view(1, w, 1, c)
            rows = rows.expand(h, w, r, c).reshape(h * w, area)
            columns = columns.expand(h, w, r, c).reshape(h * w, area)
            apart = rows[:, :, None] != rows[:, None, :]
            apart = apart | (columns[:, :, None] != columns[:, None, :])
            logits = logits.masked_fill(apart[:, None], float("-inf"))
        x = a.attn_drop(logits.softmax(-1)).to(v.dtype) @ v
        x = a.proj_drop(a.proj(x.transpose(2, 3).flatten(3)))  # [N, windows, area, D]

        x = x.reshape(n, h, w, r, c, -1).transpose(2, 3).reshape(n, height, width, -1)
        if odd:
            x = x.roll((down, right), (1, 2))
        return x[:, : size[0], : size[1]]

    @staticmethod
    def _as_tokens(x: Tensor) -> Tokens:
        """`Tokens` of a map [N, h, w, D]."""
        patches = x.flatten(1, 2)
        return Tokens(patches.mean(1), patches, (x.shape[1], x.shape[2]))

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        require(self, ["drop"] if keep is not None else [], "tokens")
        x = self._embed(x, mask, mask_token)
        for _, _, after in self._blocks(x):
            x = after
        return self._as_tokens(self.net.norm(x))

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        maps = [after for _, _, after in self._blocks(self._embed(x))]
        last = self.depth - len(self.net.layers[-1].blocks)  # the last stage's first block
        maps[last:] = [self.net.norm(m) for m in maps[last:]]
        return [self._as_tokens(m) for m in maps[-n:]]

    def attention(self, x: Tensor, layer: int = -1, rows: slice = slice(None)) -> Tensor:
        require(self, ["attention"], "attention")
        raise NotImplementedError  # unreachable: `require` raises

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        facets = resolve_facets(self, wanted)
        deepest, tokens_of = max(layer for layer, _ in facets), {}
        for i, (block, before, after) in enumerate(self._blocks(self._embed(x))):
            needed = {which for layer, which in facets if layer == i}
            out = {"token": after}
            if needed - {"token"}:
                thirds = block.attn.qkv(block.norm1(before)).chunk(3, -1)
                out |= dict(zip(FACETS[:3], thirds, strict=True))
            tokens_of |= {(i, which): self._as_tokens(out[which]) for which in needed}
            if i == deepest:
                break
        return [tokens_of[facet] for facet in facets]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        refuse_by_samples(self, by_samples)
        blocks = [block for stage in self.net.layers for block in stage.blocks]
        set_drop_paths(blocks, rate, "drop_path1", "drop_path2")

"""Decoders: transformer blocks over patches, and convolutions that upsample a map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.blocks import Block
from nolabel.backbones.init import init_like_mae, sincos_positions
from nolabel.errors import UsageError
from nolabel.nn.patches import unpatchify

_NARROWEST = 8  # channels of the last maps of a `MapDecoder`


def transformer_blocks(dim: int, depth: int, heads: int) -> nn.Sequential:
    """Pre-norm transformer blocks with exact GELU, for decoders: [B, T, D] -> [B, T, D].

    Args:
        dim: width D, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads of each.
    """
    return nn.Sequential(*(Block(dim, heads) for _ in range(depth)))


class PatchDecoder(nn.Module):
    """A transformer over a grid of codes with fixed sine-cosine position embeddings:
    [N, P, width] -> maps fp32 [N, channels, H, W].

    Args:
        width, depth, heads: of its blocks; width is a multiple of 4 and of heads.
        grid: codes along one side, P = grid * grid.
        patch: side of a patch in pixels.
        channels: numbers predicted for each pixel.

    Raises:
        UsageError: width is no multiple of heads.
    """

    positions: Tensor

    def __init__(self, width: int, depth: int, heads: int, grid: int, *, patch: int, channels: int):
        super().__init__()
        if width % heads:
            raise UsageError(f"decoder_dim {width} is no multiple of decoder_heads {heads}.")
        self.register_buffer("positions", sincos_positions(width, grid, prefix=0))
        self.blocks = transformer_blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.patch = patch
        self.pred = nn.Linear(width, patch * patch * channels)
        init_like_mae(self)

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        y = self.pred(self.norm(self.blocks(x + self.positions)))
        return unpatchify(y, self.patch, (side, side)).float()


def prime_factors(n: int) -> list[int]:
    """Prime factors, ascending; [1] for 1."""
    out, f = [], 2
    while n > 1:
        while n % f == 0:
            out.append(f)
            n //= f
        f += 1
    return out or [1]


class MapDecoder(nn.Module):
    """Code [N, code] to image [N, C, H, W]: a small map, upsampled step by step.

    Args:
        grid: side of the first map; patch: factor from there to the image.
        skips: channels of the features that join the maps of a side, {side: D}.
    """

    def __init__(
        self, code: int, channels: int, grid: int, patch: int, width: int, skips: Mapping[int, int]
    ):
        super().__init__()
        self.grid, self.skips = grid, dict(skips)
        self.start = nn.Linear(code, width * grid * grid)
        self.stages = nn.ModuleList()
        side = grid
        for f in prime_factors(patch):
            out = max(width // f, _NARROWEST)
            inner = width + self.skips.get(side, 0)
            conv = nn.Conv2d(inner, out * f * f, 3, padding=1)
            self.stages.append(nn.Sequential(conv, nn.PixelShuffle(f), nn.GELU()))
            side, width = side * f, out
        self.last = nn.Conv2d(width + self.skips.get(side, 0), channels, 3, padding=1)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):  # torch's default init shrinks the signal
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, code: Tensor, maps: Mapping[int, Tensor]) -> Tensor:
        x = F.gelu(self.start(code)).unflatten(1, (-1, self.grid, self.grid))
        for stage in (*self.stages, self.last):
            if x.shape[-1] in self.skips:
                x = torch.cat([x, maps[x.shape[-1]].to(x.dtype)], 1)
            x = stage(x)
        return x.float()

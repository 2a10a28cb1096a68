"""Decoders: transformer blocks over patches."""

from __future__ import annotations

from torch import Tensor, nn

from nolabel.backbones.blocks import Block
from nolabel.backbones.init import init_like_mae, sincos_positions
from nolabel.errors import UsageError


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
    [N, P, width] -> [N, P, out].

    Args:
        width, depth, heads: of its blocks; width is a multiple of 4 and of heads.
        grid: codes along one side, P = grid * grid.
        out: numbers predicted for each patch.

    Raises:
        UsageError: width is no multiple of heads.
    """

    positions: Tensor

    def __init__(self, width: int, depth: int, heads: int, grid: int, out: int):
        super().__init__()
        if width % heads:
            raise UsageError(f"decoder_dim {width} is no multiple of decoder_heads {heads}.")
        self.register_buffer("positions", sincos_positions(width, grid, prefix=0))
        self.blocks = transformer_blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, out)
        init_like_mae(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.pred(self.norm(self.blocks(x + self.positions)))

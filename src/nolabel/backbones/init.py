"""Initial weights of ViTs, as in the papers' official code."""

from __future__ import annotations

import math
from types import UnionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nolabel.errors import UsageError

if TYPE_CHECKING:
    from nolabel.backbones.vit import ViT

# Width below which matrices get Xavier initialisation. With a standard deviation of 0.02, as in
# timm and the papers, the output of a ViT narrower than ViT-Ti hardly depends on its input, and it
# learns far more slowly.
NARROW = 192


def sincos_positions(dim: int, grid: int, prefix: int = 1) -> Tensor:
    """Fixed 2-D sine-cosine position embeddings, as in MAE: the first half of the channels encodes
    the column, the second the row.

    Args:
        dim: width, a multiple of 4.
        grid: patches along one side.
        prefix: rows of zeros in front, one for each prefix token.

    Returns:
        float32 [1, prefix + grid*grid, dim].

    Raises:
        UsageError: dim is no multiple of 4.
    """
    if dim % 4:
        raise UsageError(f"Sine-cosine positions need a width divisible by 4, got {dim}.")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angle.sin(), angle.cos()], 1)  # [grid, dim / 2]
    columns = axis[None].expand(grid, grid, -1)
    rows = axis[:, None].expand(grid, grid, -1)
    table = torch.cat([columns, rows], -1).reshape(grid * grid, dim)
    return torch.cat([table.new_zeros(prefix, dim), table]).float().unsqueeze(0)


def _init_truncated_normal(net: Any, layers: type | UnionType) -> None:
    """Matrices of `layers` and tokens truncated normal of standard deviation 0.02, biases zero;
    matrices Xavier-uniform if the network is narrower than `NARROW`."""
    narrow = net.embed_dim < NARROW
    for module in net.modules():
        if isinstance(module, layers):
            if narrow:
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            else:
                nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name in ("pos_embed", "cls_token"):
        token = getattr(net, name, None)
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)


def init_like_dino(net: nn.Module) -> None:
    """Truncated normal (standard deviation 0.02) for matrices of linear layers and tokens, zero
    biases (DINO, iBOT); Xavier-uniform matrices below width `NARROW`."""
    _init_truncated_normal(net, nn.Linear)


def init_like_dinov2(net: nn.Module) -> None:
    """As DINO, but the class token starts near 0, as timm's registers do (DINOv2)."""
    init_like_dino(net)
    if (token := getattr(net, "cls_token", None)) is not None:
        nn.init.normal_(token, std=1e-6)


def init_like_mae(net: nn.Module) -> None:
    """Xavier-uniform matrices (the patch projection as a matrix too), zero biases, class token of
    standard deviation 0.02 (MAE)."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
    token = getattr(net, "cls_token", None)
    if token is not None:
        nn.init.normal_(token, std=0.02)


def init_like_mocov3(vit: ViT) -> None:
    """Xavier-uniform matrices, each third of qkv by its own fan, the patch projection too; class
    token of standard deviation 1e-6; fixed sine-cosine position embeddings whose first half of the
    channels encodes the row (MoCo v3)."""
    net = vit.net
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            out, fan_in = module.weight.shape
            bound = math.sqrt(6 / ((out // 3 if name.endswith("qkv") else out) + fan_in))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    proj = net.patch_embed.proj
    bound = math.sqrt(6 / (proj.weight[0].numel() + vit.dim))
    nn.init.uniform_(proj.weight, -bound, bound)
    if proj.bias is not None:
        nn.init.zeros_(proj.bias)
    if net.cls_token is not None:
        nn.init.normal_(net.cls_token, std=1e-6)
    prefix, (h, w) = net.num_prefix_tokens, net.patch_embed.grid_size
    table = sincos_positions(vit.dim, h, prefix)
    front, patches = table[:, :prefix], table[:, prefix:].unflatten(1, (h, w))
    net.pos_embed.data.copy_(torch.cat([front, patches.transpose(1, 2).flatten(1, 2)], 1))


def init_like_beit(net: nn.Module) -> None:
    """Truncated normal (standard deviation 0.02) for matrices, patch projection and tokens, zero
    biases; the output matrices of block l (from 1) are divided by sqrt(2 l) (BEiT)."""
    _init_truncated_normal(net, nn.Linear | nn.Conv2d)
    blocks: Any = getattr(net, "blocks", ())
    for layer, block in enumerate(blocks, 1):
        block.attn.proj.weight.data.div_(math.sqrt(2.0 * layer))
        block.mlp.fc2.weight.data.div_(math.sqrt(2.0 * layer))

"""How deep in a network each parameter lies, and which of them weight decay leaves alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

# The names of timm's networks: stage and block of a ViT, a Swin, a ConvNeXt or a ResNet, and the
# merging with which timm's stages of a Swin or ConvNeXt begin (Swins as published end with it).
_BLOCKS = (
    re.compile(r"(?:^|\.)net\.(?:(?:layers|stages)\.(\d+)\.)?blocks\.(\d+)\."),
    re.compile(r"(?:^|\.)net\.layer(\d)\.(\d+)\."),
)
_MERGING = re.compile(r"(?:^|\.)net\.(?:layers|stages)\.(\d+)\.downsample\.")
_FRONT = re.compile(
    r"(?:^|\.)net\.(patch_embed|pos_embed|cls_token|reg_token|conv1|bn1|stem)|mask_token"
)


def layer_numbers(names: Iterable[str]) -> tuple[dict[str, int], int]:
    """The layer of each parameter, and the number of the last layer, for layer-wise decay of rates
    (Bao et al., "BEiT", 2021; Clark et al., "ELECTRA", 2020).

    Patches, tokens and positions are layer 0, the block of number i is i + 1 as is the merging
    behind it (Xie et al., "SimMIM", 2021), what comes after the last block (norm, heads) one more.

    Args:
        names: of parameters, as timm calls them, behind any prefix that ends in `net.`.
    """
    names = list(names)
    blocks = {name: place for name in names if (place := _block(name))}
    number = {place: i + 1 for i, place in enumerate(sorted(set(blocks.values())))}
    last = len(number) + 1

    def layer(name: str) -> int:
        if name in blocks:
            return number[blocks[name]]
        if merging := _MERGING.search(name):
            return number[int(merging[1]), 0] - 1
        return 0 if _FRONT.search(name) else last

    return {name: layer(name) for name in names}, last


def _block(name: str) -> tuple[int, int] | None:
    """(stage, block)."""
    for pattern in _BLOCKS:
        if found := pattern.search(name):
            return int(found[1] or 0), int(found[2])
    return None


def is_plain(name: str, p: Tensor) -> bool:
    """Whether weight decay leaves a parameter alone: 1-D ones, biases, tables of the biases of
    relative positions."""
    return p.ndim < 2 or name.endswith(("bias", ".relative_position_bias_table"))

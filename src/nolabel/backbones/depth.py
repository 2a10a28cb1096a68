"""Layer-wise learning rate decay: the layer of each parameter; and which skip weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

# Parameter names of timm's networks: stage and block of a ViT, a Swin, a ConvNeXt or a ResNet, and
# the downsampling at the start of a stage of timm's Swin or ConvNeXt (the end in published Swins).
_BLOCKS = (
    re.compile(r"(?:^|\.)net\.(?:(?:layers|stages)\.(\d+)\.)?blocks\.(\d+)\."),
    re.compile(r"(?:^|\.)net\.layer(\d)\.(\d+)\."),
)
_MERGING = re.compile(r"(?:^|\.)net\.(?:layers|stages)\.(\d+)\.downsample\.")
_FRONT = re.compile(
    r"(?:^|\.)net\.(patch_embed|pos_embed|cls_token|reg_token|conv1|bn1|stem)|mask_token"
)

TOKENS = ("cls_token", "reg_token", "pos_embed")  # ends of their names
_TABLE = ".relative_position_bias_table"


def layer_numbers(names: Iterable[str]) -> tuple[dict[str, int], int]:
    """The layer of each parameter, and the number of the last layer, for layer-wise learning rate
    decay (Bao et al., "BEiT", 2021; Clark et al., "ELECTRA", 2020).

    Patch projection, tokens and position embeddings are layer 0; block i (from 0) is layer i + 1,
    and so is the downsampling after it (Xie et al., "SimMIM", 2021); all that follows the last
    block (norm, heads) is one layer more.

    Args:
        names: of parameters, timm's own after any prefix that ends in `net.`.

    Returns:
        name -> layer, and the number of the last layer.
    """
    names = list(names)
    blocks = {name: position for name in names if (position := _block(name))}
    number = {position: i + 1 for i, position in enumerate(sorted(set(blocks.values())))}
    last = len(number) + 1

    def layer(name: str) -> int:
        if name in blocks:
            return number[blocks[name]]
        if merging := _MERGING.search(name):
            return number[int(merging[1]), 0] - 1
        return 0 if _FRONT.search(name) else last

    return {name: layer(name) for name in names}, last


def _block(name: str) -> tuple[int, int] | None:
    """(stage, block) of a parameter, both from 0; None outside the blocks."""
    for pattern in _BLOCKS:
        if match := pattern.search(name):
            return int(match[1] or 0), int(match[2])
    return None


def skips_weight_decay(name: str, p: Tensor) -> bool:
    """Whether a parameter has no weight decay in pre-training: 1-D ones, biases, tables of relative
    position biases. Class token and position embeddings decay (DINO, MAE) unless a recipe says
    otherwise."""
    return p.ndim < 2 or name.endswith(("bias", _TABLE))


def skips_weight_decay_in_finetuning(name: str, p: Tensor) -> bool:
    """Whether a parameter has no weight decay in fine-tuning: 1-D ones, biases, class token and
    position embeddings (MAE, BEiT, EVA, SimMIM), and a Swin's tables of relative position biases,
    not a BEiT's."""
    if name.endswith(_TABLE):
        return ".layers." in name
    return p.ndim < 2 or name.endswith(("bias", *TOKENS))

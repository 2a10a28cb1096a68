"""The networks that have a name of ours: small ones fit for a CPU, and common ones of timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nolabel.catalogue import Entry, by_name


@dataclass(frozen=True, kw_only=True)
class BackboneInfo(Entry):
    """One line of `PRESETS`: a name of ours for a timm network with other keyword arguments."""

    timm_name: str
    kwargs: dict[str, Any] = field(default_factory=dict)


# Small ResNets: one block a stage. Those without pooling in front are for small images.
_NANO: dict[str, Any] = {
    "layers": [1, 1, 1, 1],
    "channels": [32, 64, 128, 128],
    "output_stride": 16,
    "zero_init_last": False,
}
_WIDE = {**_NANO, "channels": [64, 128, 256, 256]}

PRESETS: dict[str, BackboneInfo] = by_name(
    BackboneInfo(
        name="vit_pico",
        description=(
            "ViT of 0.2 M parameters for minutes on a CPU: width 64, 4 blocks, 4 heads, patch 4"
        ),
        timm_name="vit_tiny_patch16_224",
        kwargs={"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
    ),
    BackboneInfo(
        name="vit_nano",
        description=(
            "ViT of 1.2 M parameters for 32-64 px on a CPU: width 128, 6 blocks, 4 heads, patch 4"
        ),
        timm_name="vit_tiny_patch16_224",
        kwargs={"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4},
    ),
    BackboneInfo(
        name="vit_micro",
        description="ViT of 4.0 M parameters for 32-96 px: width 192, 9 blocks, 3 heads, patch 4",
        timm_name="vit_tiny_patch16_224",
        kwargs={"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 9, "num_heads": 3},
    ),
    BackboneInfo(
        name="vit_tiny",
        description="ViT-Ti/16, 5.5 M parameters, 224 px",
        timm_name="vit_tiny_patch16_224",
    ),
    BackboneInfo(
        name="vit_small",
        description="ViT-S/16, 21.7 M parameters, 224 px",
        timm_name="vit_small_patch16_224",
    ),
    BackboneInfo(
        name="vit_base",
        description="ViT-B/16, 85.8 M parameters, 224 px",
        timm_name="vit_base_patch16_224",
    ),
    BackboneInfo(
        name="vit_large",
        description="ViT-L/16, 303 M parameters, 224 px",
        timm_name="vit_large_patch16_224",
    ),
    BackboneInfo(
        name="swin_nano",
        description=(
            "Swin of 0.5 M parameters for 32-64 px on a CPU: width 32 to 128, 6 blocks, window 4"
        ),
        timm_name="swin_tiny_patch4_window7_224",
        kwargs={
            "img_size": 32,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 32,
            "depths": [2, 2, 2],
            "num_heads": [2, 4, 8],
        },
    ),
    BackboneInfo(
        name="swin_tiny",
        description="Swin-T, 27.5 M parameters, 224 px",
        timm_name="swin_tiny_patch4_window7_224",
    ),
    BackboneInfo(
        name="swin_base",
        description="Swin-B, 86.7 M parameters, 224 px",
        timm_name="swin_base_patch4_window7_224",
    ),
    BackboneInfo(
        name="convnext_mini",
        description=(
            "ConvNeXt of 0.6 M parameters for 32-96 px on a CPU: width 24 to 192, 5 blocks, "
            "stride 8"
        ),
        timm_name="convnext_atto",
        kwargs={
            "patch_size": 1,
            "depths": [1, 1, 2, 1],
            "dims": [24, 48, 96, 192],
            "kernel_sizes": 5,
            "conv_mlp": False,
            "ls_init_value": None,
            "image_size": 32,
        },
    ),
    BackboneInfo(
        name="convnext_tiny",
        description="ConvNeXt-T, 27.8 M parameters",
        timm_name="convnext_tiny",
    ),
    BackboneInfo(
        name="convnext_base",
        description="ConvNeXt-B, 87.6 M parameters",
        timm_name="convnext_base",
    ),
    BackboneInfo(
        name="resnet_nano",
        description=(
            "ResNet of 0.6 M parameters for 32-96 px on a CPU: one block a stage, no pooling in "
            "front"
        ),
        timm_name="resnet18",
        kwargs={**_NANO, "maxpool": False, "image_size": 32},
    ),
    BackboneInfo(
        name="resnet_mini",
        description="as resnet_nano, of twice the width: 2.4 M parameters, for 32-64 px on a CPU",
        timm_name="resnet18",
        kwargs={**_WIDE, "maxpool": False, "image_size": 32},
    ),
    BackboneInfo(
        name="resnet_micro",
        description="as resnet_nano, with pooling in front: 0.6 M parameters, for 64-128 px",
        timm_name="resnet18",
        kwargs={**_NANO, "image_size": 64},
    ),
    BackboneInfo(
        name="resnet_tiny",
        description="as resnet_mini, with pooling in front: 2.4 M parameters, for 64-160 px",
        timm_name="resnet18",
        kwargs={**_WIDE, "image_size": 96},
    ),
    BackboneInfo(
        name="resnet18",
        description="ResNet-18, 11.2 M parameters",
        timm_name="resnet18",
    ),
    BackboneInfo(
        name="resnet50",
        description="ResNet-50, 23.5 M parameters",
        timm_name="resnet50",
    ),
)
# What `nolabel list backbones` shows: the presets, and what else `build` takes.
BACKBONES: dict[str, Entry] = {
    **PRESETS,
    **by_name(
        Entry(
            name="vit_*, beit*, swin_*, convnext*, resnet*",
            description="any other ViT, BEiT, Swin (version 1), ConvNeXt or ResNet of timm",
        ),
        Entry(
            name="path/to/file.py:Class",
            description="a network of your own: any nn.Module that maps images to features",
        ),
    ),
}


def patch_of(name: str) -> int:
    """Side in pixels of the patch that a preset has or that stands in a timm name (patch16)."""
    preset = PRESETS.get(name)
    if preset and "patch_size" in preset.kwargs:
        return int(preset.kwargs["patch_size"])
    for part in (preset.timm_name if preset else name).split(".")[0].split("_"):
        if part.startswith("patch") and part[5:].isdigit():
            return int(part[5:])
    return 16

"""Backbones by name: any ViT, Swin, ConvNeXt or ResNet of timm, small ones fit for a CPU, and a
user's own network (`file.py:Class`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nolabel._usercode.reference import is_reference
from nolabel.catalogue import Entry, by_name
from nolabel.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from nolabel.backbones.base import Backbone


@dataclass(frozen=True, kw_only=True)
class BackboneInfo(Entry):
    """One line of `PRESETS`: a name of ours for a timm network with other keyword arguments."""

    timm_name: str
    kwargs: dict[str, Any] = field(default_factory=dict)


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
        kwargs={
            "layers": [1, 1, 1, 1],
            "channels": [32, 64, 128, 128],
            "output_stride": 16,
            "zero_init_last": False,
            "maxpool": False,
            "image_size": 32,
        },
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


def build(
    name: str,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    channels: int = 3,
    pretrained: bool = False,
    kwargs: dict[str, Any] | None = None,
    positions: str = "dino",
) -> Backbone:
    """Builds a backbone.

    Args:
        name: a preset above, any timm ViT, Swin, ConvNeXt or ResNet, a user's own network as
            path/to/file.py:Class, or "pixels".
        image_size: side of the input in pixels; None keeps the network's own.
        patch_size: side of a ViT's patch in pixels, or of those that a Swin embeds; None keeps the
            network's own.
        channels: of the images.
        pretrained: loads timm's published weights (needs the network, at the user's request).
        kwargs: further keyword arguments of timm's constructor.
        positions: how a ViT's position embeddings are resized: "dino", "mae" or "timm".

    Raises:
        UsageError: unknown name, or sizes that do not fit.
    """
    kwargs = dict(kwargs or {})
    if channels != 3:
        kwargs["in_chans"] = channels
    if name == "pixels":
        from nolabel.backbones.pixels import Pixels

        return Pixels(image_size or kwargs.get("image_size", 32), kwargs.get("in_chans", 3))

    if is_own(name):
        from nolabel.backbones.own import build_own

        if pretrained or patch_size is not None:
            what = "has no published weights" if pretrained else "takes no --patch-size"
            raise UsageError(f"{name!r} is a network of your own, which {what}.")
        size = image_size or kwargs.get("image_size") or 224
        return build_own(name, size, kwargs.get("in_chans", 3), kwargs)

    import timm

    from nolabel.backbones.beit import BEiT
    from nolabel.backbones.convnext import ConvNeXt
    from nolabel.backbones.resnet import ResNet
    from nolabel.backbones.swin import Swin
    from nolabel.backbones.vit import NARROW, ViT, init_like_mae, patch_grid

    preset = PRESETS.get(name)
    timm_name = preset.timm_name if preset else name
    if not timm.is_model(timm_name.split(".")[0]):
        known = [
            *PRESETS,
            *(
                m
                for f in ("vit_*", "beit*", "swin_*", "convnext*", "resnet*")
                for m in timm.list_models(f)
            ),
        ]
        raise UsageError(
            f"Unknown backbone {name!r}.{did_you_mean(name, known)} Allowed: "
            f"{', '.join(PRESETS)}, any ViT, Swin, ConvNeXt or ResNet of timm (nolabel list "
            "backbones), and path/to/file.py:Class for your own."
        )
    kwargs = {**(preset.kwargs if preset else {}), **kwargs}
    family = timm.models.model_entrypoint(timm_name.split(".")[0]).__module__.split(".")[-1]
    if family in ("vision_transformer", "swin_transformer", "beit"):
        if patch_size is not None:
            kwargs["patch_size"] = patch_size
        if image_size is not None:
            kwargs["img_size"] = image_size
    if family in ("vision_transformer", "beit"):
        cfg = timm.get_pretrained_cfg(timm_name.split(".")[0])
        patch = kwargs.get("patch_size") or patch_of(timm_name)
        patch_grid(kwargs.get("img_size") or (cfg.input_size[-1] if cfg else 224), patch)
    elif family == "swin_transformer":
        kwargs.setdefault("drop_path_rate", 0.0)  # timm's own is 0.1; a method sets its own
    elif patch_size is not None:
        raise UsageError(
            f"--patch-size is for ViTs and Swin; {name!r} has no patches. Leave it out."
        )
    known = {"vision_transformer": 3, "beit": 1}.get(family, 0)  # how many of the three it has
    foreign = [k for k in ("init_values", "swiglu", "reg_tokens")[known:] if kwargs.get(k)]
    if foreign:
        raise UsageError(
            f"{name!r} has no {' and no '.join(foreign)}: that is for ViTs. Use a ViT, for example "
            "--backbone vit_tiny, or set the options to 0."
        )
    size = image_size or kwargs.pop("image_size", None) or 224
    kwargs.pop("image_size", None)
    maxpool = bool(kwargs.pop("maxpool", True))
    net = timm.create_model(timm_name, pretrained=pretrained, num_classes=0, **_layers(kwargs))
    if isinstance(net, timm.models.VisionTransformer):
        if net.embed_dim < NARROW and not pretrained:
            init_like_mae(net)
        return ViT(net, timm_name, kwargs, positions)
    if isinstance(net, timm.models.Beit):
        return BEiT(net, timm_name, kwargs)
    if isinstance(net, timm.models.SwinTransformer):
        return Swin(net, timm_name, kwargs)
    if isinstance(net, timm.models.ResNet):
        return ResNet(net, timm_name, kwargs, size, maxpool)
    if isinstance(net, timm.models.ConvNeXt):
        return ConvNeXt(net, timm_name, kwargs, size)
    raise UsageError(
        f"{name!r} is a {type(net).__name__}; nolabel supports timm's ViT, BEiT, Swin (version "
        "1), ConvNeXt and ResNet families. Use vit_small, swin_tiny, convnext_tiny or resnet50 "
        "(nolabel list backbones)."
    )


def at_size(backbone: Backbone, image_size: int) -> Backbone:
    """The same network for another size of images.

    A ViT's positions and a BEiT's relative ones are resampled for good; other networks take any
    size as they are.

    Args:
        backbone: the network.
        image_size: side of the new input in pixels.
    """
    from nolabel.backbones.beit import BEiT
    from nolabel.backbones.vit import ViT, fit_positions

    if backbone.image_size == image_size:
        return backbone
    if isinstance(backbone, BEiT):
        return backbone.resized(image_size)
    if not isinstance(backbone, ViT):
        return backbone
    kwargs = {k: v for k, v in backbone.kwargs.items() if k != "img_size"}
    new = build(backbone.name, image_size=image_size, kwargs=kwargs, positions=backbone.positions)
    new.load_state_dict(fit_positions(backbone.state_dict(), new.state_dict(), backbone))
    return new


def is_own(name: str) -> bool:
    """Whether a name is that of a user's own network: file.py:Class, or one given in Python."""
    return name.startswith("object:") or is_reference(name)


def is_convolutional(name: str) -> bool:
    """Whether a recipe for convolutional networks suits the network: also for users' own."""
    return "resnet" in name or "convnext" in name or is_own(name)


def _layers(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for timm: `swiglu: True` is a plain value that a file can hold."""
    kwargs = dict(kwargs)
    if kwargs.pop("swiglu", False):
        from nolabel.backbones.blocks import swiglu

        kwargs["mlp_layer"] = swiglu
    return kwargs


def stride_of(name: str, patch_size: int | None = None) -> int:
    """Pixels of which the sides of images must be multiples: a ViT's patch, the final tokens of
    Swin, 1 for convolutional networks.

    Args:
        name: of a preset or of timm.
        patch_size: as for `build`.
    """
    if is_own(name):
        from nolabel.backbones.own import own_stride

        return own_stride(name)
    if is_convolutional(name) or name == "pixels":
        return 1
    patch = patch_size or patch_of(name)
    if not name.startswith("swin"):
        return patch
    depths = PRESETS[name].kwargs.get("depths") if name in PRESETS else None
    return patch * 2 ** (len(depths or (2, 2, 6, 2)) - 1)  # every stage but the first halves


def depth_of(name: str, patch_size: int | None = None) -> int | None:
    """Number of equal blocks of a ViT or BEiT; None for networks of other makes."""
    import torch

    if is_convolutional(name):
        return None
    with torch.device("meta"):  # no weights are made
        net: Any = build(name, patch_size=patch_size)
    return len(net.net.blocks) if type(net).__name__ in ("ViT", "BEiT") else None


def patch_of(name: str) -> int:
    """Side in pixels of the patch that a preset has or that stands in a timm name (patch16)."""
    preset = PRESETS.get(name)
    if preset and "patch_size" in preset.kwargs:
        return int(preset.kwargs["patch_size"])
    for part in (preset.timm_name if preset else name).split(".")[0].split("_"):
        if part.startswith("patch") and part[5:].isdigit():
            return int(part[5:])
    return 16

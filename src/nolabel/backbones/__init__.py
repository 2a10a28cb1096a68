"""Backbones by name: any ViT, BEiT, Swin, ConvNeXt or ResNet of timm, presets fit for a CPU, and a
user's own network (`file.py:Class`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nolabel._usercode.reference import is_reference
from nolabel.backbones.presets import BACKBONES, PRESETS, BackboneInfo, patch_of
from nolabel.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from nolabel.backbones.base import Backbone

__all__ = [
    "BACKBONES",
    "PRESETS",
    "BackboneInfo",
    "at_size",
    "build",
    "depth_of",
    "is_convolutional",
    "is_own",
    "patch_of",
    "stride_of",
]

# Families of timm by the module that defines them, and the options of ViTs that each one has.
_VIT_OPTIONS = ("init_values", "swiglu", "reg_tokens")
_OPTIONS_OF = {"vision_transformer": _VIT_OPTIONS, "beit": ("init_values",)}
_PATCHES = ("vision_transformer", "swin_transformer", "beit")


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
        name: a preset, any ViT, BEiT, Swin, ConvNeXt or ResNet of timm, a user's own network as
            path/to/file.py:Class, or "pixels".
        image_size: side of the input in pixels; None keeps the network's own.
        patch_size: side of a ViT's patch in pixels, or of the patches that a Swin embeds; None
            keeps the network's own.
        channels: C of the images.
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
    return _build_timm(name, image_size, patch_size, pretrained, kwargs, positions)


def _build_timm(
    name: str,
    image_size: int | None,
    patch_size: int | None,
    pretrained: bool,
    kwargs: dict[str, Any],
    positions: str,
) -> Backbone:
    """`build` of a preset or of a network of timm."""
    import timm

    preset = PRESETS.get(name)
    timm_name = preset.timm_name if preset else name
    if not timm.is_model(timm_name.split(".")[0]):
        raise _unknown_backbone(name)
    family = timm.models.model_entrypoint(timm_name.split(".")[0]).__module__.split(".")[-1]
    kwargs = {**(preset.kwargs if preset else {}), **kwargs}
    _set_sizes(name, timm_name, family, image_size, patch_size, kwargs)
    missing = [k for k in _VIT_OPTIONS if kwargs.get(k) and k not in _OPTIONS_OF.get(family, ())]
    if missing:
        raise UsageError(
            f"{name!r} has no {' and no '.join(missing)}: that is for ViTs. Use a ViT, for example "
            "--backbone vit_tiny, or set the options to 0."
        )
    size = image_size or kwargs.pop("image_size", None) or 224
    kwargs.pop("image_size", None)
    maxpool = bool(kwargs.pop("maxpool", True))
    net = timm.create_model(timm_name, pretrained=pretrained, num_classes=0, **_with_layers(kwargs))
    if isinstance(net, timm.models.VisionTransformer):
        from nolabel.backbones.init import NARROW, init_like_mae
        from nolabel.backbones.vit import ViT

        if net.embed_dim < NARROW and not pretrained:
            init_like_mae(net)
        return ViT(net, timm_name, kwargs, positions)
    return _wrap(net, name, timm_name, kwargs, size, maxpool)


def _unknown_backbone(name: str) -> UsageError:
    import timm

    patterns = ("vit_*", "beit*", "swin_*", "convnext*", "resnet*")
    names = [*PRESETS, *(model for pattern in patterns for model in timm.list_models(pattern))]
    return UsageError(
        f"Unknown backbone {name!r}.{did_you_mean(name, names)} Allowed: "
        f"{', '.join(PRESETS)}, any ViT, Swin, ConvNeXt or ResNet of timm (nolabel list "
        "backbones), and path/to/file.py:Class for your own."
    )


def _set_sizes(
    name: str,
    timm_name: str,
    family: str,
    image_size: int | None,
    patch_size: int | None,
    kwargs: dict[str, Any],
) -> None:
    """Puts the sizes into timm's keyword arguments; refuses those that the family cannot have."""
    import timm

    from nolabel.backbones.vit import patch_grid

    if family in _PATCHES:
        if patch_size is not None:
            kwargs["patch_size"] = patch_size
        if image_size is not None:
            kwargs["img_size"] = image_size
    if family in ("vision_transformer", "beit"):
        cfg = timm.get_pretrained_cfg(timm_name.split(".")[0])
        patch = kwargs.get("patch_size") or patch_of(timm_name)
        patch_grid(kwargs.get("img_size") or (cfg.input_size[-1] if cfg else 224), patch)
    elif family == "swin_transformer":
        kwargs.setdefault("drop_path_rate", 0.0)  # timm's default is 0.1; a method sets its own
    elif patch_size is not None:
        raise UsageError(
            f"--patch-size is for ViTs and Swin; {name!r} has no patches. Leave it out."
        )


def _wrap(
    net: nn.Module, name: str, timm_name: str, kwargs: dict[str, Any], size: int, maxpool: bool
) -> Backbone:
    """The adapter of a timm network that is no plain ViT."""
    import timm

    from nolabel.backbones.beit import BEiT
    from nolabel.backbones.convnext import ConvNeXt
    from nolabel.backbones.resnet import ResNet
    from nolabel.backbones.swin import Swin

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

    A ViT's position embeddings and a BEiT's relative position bias are interpolated once; other
    networks take any size as they are.

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
    """Whether recipes treat the network as convolutional; a user's own network counts as such."""
    return "resnet" in name or "convnext" in name or is_own(name)


def _with_layers(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for timm: `swiglu: True`, which a JSON or YAML file can hold, becomes
    the layer's class."""
    kwargs = dict(kwargs)
    if kwargs.pop("swiglu", False):
        from nolabel.backbones.blocks import swiglu

        kwargs["mlp_layer"] = swiglu
    return kwargs


def stride_of(name: str, patch_size: int | None = None) -> int:
    """The number of pixels that must divide the sides of images: a ViT's patch, the side of a final
    token of Swin, 1 for convolutional networks.

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
    """Number of transformer blocks of a ViT or BEiT; None for other networks.

    Args:
        name: of a preset or of timm.
        patch_size: as for `build`.
    """
    import torch

    if is_convolutional(name):
        return None
    from nolabel.backbones.beit import BEiT
    from nolabel.backbones.vit import ViT

    with torch.device("meta"):  # no weights are allocated
        backbone = build(name, patch_size=patch_size)
    return backbone.depth if isinstance(backbone, (ViT, BEiT)) else None

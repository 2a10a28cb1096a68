"""Shapes of official checkpoints: from the tensors' names and sizes to timm's network and names.

What a layout reads is already without prefixes and heads (see `official`). Sizes follow from the
tensors; the number of heads does not, and comes from the family or the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nolabel.errors import DataError, UsageError

State = dict[str, Tensor]
# Heads of the published widths; others must be given.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
_BLOCKS = {  # blocks of each stage, and whether a block has three convolutions
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}


@dataclass(frozen=True)
class Architecture:
    """An architecture and its weights.

    Attributes:
        name, kwargs: what `nolabel.backbones.build` makes it from.
        tensors: by timm's names.
        image_size: side in pixels that it was made for.
        text: arguments and weights of the text side (`SharedSpace`), if there is one.
    """

    name: str
    kwargs: dict[str, Any]
    tensors: State
    image_size: int
    text: tuple[dict[str, Any], State] | None = None


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern` captures at the start of a name."""
    numbers = [int(m.group(1)) for name in state if (m := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def heads_of(width: int, given: int | None, special: Mapping[int, int] | None = None) -> int:
    """The number of heads of a transformer of this width.

    Raises:
        UsageError: not known, or no divisor of the width.
    """
    heads = given or {**HEADS, **(special or {})}.get(width)
    if heads is None:
        raise UsageError(
            f"The number of attention heads does not follow from the tensors, and none is known "
            f"for width {width}. Give --heads."
        )
    if heads < 1 or width % heads:
        raise UsageError(f"--heads {heads} does not divide the width {width}.")
    return heads


def transformer(
    state: State,
    heads: int | None,
    *,
    special: Mapping[int, int] | None = None,
    mean_pool: bool = False,
) -> Architecture:
    """A plain ViT by DINO's and timm's names; also BEiT's and DINOv2's variants of it.

    `mean_pool`: a BEiT's embedding is the mean of its patches, not its class token.
    """
    state = dict(state)
    weight = _needed(state, "patch_embed.proj.weight")
    width, channels, patch = weight.shape[0], weight.shape[1], weight.shape[-1]
    depth = count(state, r"blocks\.(\d+)\.")
    kwargs: dict[str, Any] = {
        "patch_size": patch, "embed_dim": width, "depth": depth,
        "num_heads": heads_of(width, heads, special),
    }  # fmt: skip
    if channels != 3:
        kwargs["in_chans"] = channels
    relative = [n for n in state if n.endswith("relative_position_bias_table")]
    if relative:
        return _beit(state, kwargs, relative, mean_pool)
    positions = _needed(state, "pos_embed")
    if (registers := state.pop("register_tokens", None)) is not None:
        # Registers come after positions are added, so the class token takes its own along.
        state["reg_token"] = registers
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions = positions[:, 1:]
        kwargs |= {"reg_tokens": registers.shape[1], "no_embed_class": True}
    places = positions.shape[1] - (0 if registers is not None else 1)
    kwargs["img_size"] = _side(places) * patch
    _mlp(state, kwargs, depth)
    if "blocks.0.ls1.gamma" in state:
        kwargs["init_values"] = 1e-5
    for i in range(depth):
        a = f"blocks.{i}.attn."
        if a + "q_bias" in state:  # keys have no bias
            q, v = state.pop(a + "q_bias"), state.pop(a + "v_bias")
            state[a + "qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    if "blocks.0.attn.qkv.bias" not in state:
        kwargs["qkv_bias"] = False
    if "fc_norm.weight" in state:
        kwargs["global_pool"] = "avg"
    return Architecture("vit_base_patch16_224", kwargs, state, kwargs["img_size"])


def _mlp(state: State, kwargs: dict[str, Any], depth: int) -> None:
    """Width of the MLP; a gated one changes its names."""
    width = kwargs["embed_dim"]
    if "blocks.0.mlp.w12.weight" in state:
        for i in range(depth):
            for old, new in (("w12", "fc1"), ("w3", "fc2")):
                for kind in ("weight", "bias"):
                    name = f"blocks.{i}.mlp.{old}.{kind}"
                    if name in state:
                        state[f"blocks.{i}.mlp.{new}.{kind}"] = state.pop(name)
        inner = state["blocks.0.mlp.fc1.weight"].shape[0] // 2  # about two thirds of the ratio
        kwargs |= {"swiglu": True, "mlp_ratio": _ratio_of_gated(inner, width)}
    elif "blocks.0.mlp.fc1.weight" in state:
        kwargs["mlp_ratio"] = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    else:
        raise DataError(
            "The file's MLPs are of a kind that is not supported "
            f"({', '.join(sorted(n for n in state if n.startswith('blocks.0.mlp.')))})."
        )


def _ratio_of_gated(inner: int, width: int) -> float:
    """A ratio whose two thirds, rounded up to a multiple of 8, are `inner`."""
    return 4.0 if (int(int(width * 4.0) * 2 / 3) + 7) // 8 * 8 == inner else 1.5 * inner / width


def _beit(
    state: State, kwargs: dict[str, Any], relative: list[str], mean_pool: bool
) -> Architecture:
    """timm's Beit has the official names, but for the index, which it computes."""
    rows = state[relative[0]].shape[0] - 3  # places of the class token come last
    grid = (math.isqrt(rows) + 1) // 2
    if (2 * grid - 1) ** 2 != rows:
        raise DataError(f"{relative[0]!r} has {rows + 3} rows, which fit no square grid.")
    kwargs |= {
        "img_size": grid * kwargs["patch_size"],
        "use_abs_pos_emb": "pos_embed" in state,
        "use_rel_pos_bias": any(n.startswith("blocks.") for n in relative),
        "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in state,
    }
    _mlp(state, kwargs, kwargs["depth"])
    if "blocks.0.gamma_1" in state:
        kwargs["init_values"] = 0.1
    if "blocks.0.attn.q_bias" not in state:
        kwargs["qkv_bias"] = False
    fine_tuned = "fc_norm.weight" in state
    kwargs |= {
        "global_pool": "avg" if mean_pool or fine_tuned else "token", "use_fc_norm": fine_tuned,
    }  # fmt: skip
    return Architecture("beit_base_patch16_224", kwargs, state, kwargs["img_size"])


def swin(state: State, image_size: int | None) -> Architecture:
    """A Swin by the official names: timm's stage begins with the merging that ends the one before.

    The size of images does not follow from the tensors: without one, 32 windows of pixels.
    """
    out: State = {}
    for name, value in state.items():
        m = re.match(r"layers\.(\d+)\.downsample\.(.*)", name)
        out[f"layers.{int(m.group(1)) + 1}.downsample.{m.group(2)}" if m else name] = value
    weight = _needed(state, "patch_embed.proj.weight")
    stages = count(state, r"layers\.(\d+)\.")
    depths = [count(state, rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)]
    tables = [
        _needed(state, f"layers.{i}.blocks.0.attn.relative_position_bias_table")
        for i in range(stages)
    ]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    width = weight.shape[0]
    ratio = _needed(state, "layers.0.blocks.0.mlp.fc1.weight").shape[0] / width
    kwargs: dict[str, Any] = {
        "img_size": image_size or 32 * window, "patch_size": weight.shape[-1], "embed_dim": width,
        "depths": depths, "num_heads": [t.shape[1] for t in tables], "window_size": window,
        "mlp_ratio": ratio,
    }  # fmt: skip
    if weight.shape[1] != 3:
        kwargs["in_chans"] = weight.shape[1]
    return Architecture("swin_tiny_patch4_window7_224", kwargs, out, kwargs["img_size"])


def resnet(state: State) -> Architecture:
    """A ResNet by torchvision's names, which are timm's."""
    stem = _needed(state, "conv1.weight")
    a, b, c, d = blocks = [count(state, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)]
    three = "layer1.0.conv3.weight" in state
    name = _BLOCKS.get((a, b, c, d, three))
    if name is None:
        kind = "three" if three else "two"
        raise DataError(
            f"No known ResNet has stages of {tuple(blocks)} blocks of {kind} convolutions each."
        )
    if stem.shape[-1] != 7:
        raise DataError(
            f"The first convolution is {stem.shape[-1]} x {stem.shape[-1]}; ResNets of the "
            "published layouts begin with 7 x 7."
        )
    kwargs: dict[str, Any] = {}
    if stem.shape[1] != 3:
        kwargs["in_chans"] = stem.shape[1]
    if stem.shape[0] != 64:  # a wide one
        planes = [_needed(state, f"layer{i}.0.conv1.weight").shape[0] for i in (1, 2, 3, 4)]
        kwargs |= {"stem_width": stem.shape[0], "channels": planes}
    return Architecture(name, kwargs, dict(state), 224)


def clip(
    state: State, heads: int | None, text_heads: int | None, *, quick_gelu: bool
) -> Architecture:
    """CLIP's two towers: the image's becomes timm's ViT, the text's our `SharedSpace`.

    Heads are 64 wide in both, as published, unless their numbers are given.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise DataError("This CLIP has a ResNet with attention pooling; only its ViTs are read.")
    vision = {n[7:]: v for n, v in state.items() if n.startswith("visual.")}
    weight = _needed(vision, "conv1.weight")
    width, patch = weight.shape[0], weight.shape[-1]
    positions = vision.pop("positional_embedding")
    out: State = {
        "patch_embed.proj.weight": vision.pop("conv1.weight"),
        "cls_token": vision.pop("class_embedding").reshape(1, 1, -1),
        "pos_embed": positions[None],
    }
    project = vision.pop("proj", None)
    depth = count(vision, r"transformer\.resblocks\.(\d+)\.")
    kwargs: dict[str, Any] = {
        "patch_size": patch, "embed_dim": width, "depth": depth,
        "num_heads": heads or max(width // 64, 1),
        "img_size": _side(positions.shape[0] - 1) * patch,
        "mlp_ratio": _needed(vision, "transformer.resblocks.0.mlp.c_fc.weight").shape[0] / width,
    }  # fmt: skip
    for name, value in vision.items():
        out[_renamed(name, {"ln_pre.": "norm_pre.", "ln_post.": "norm."})] = value
    name = "vit_base_patch16_clip_quickgelu_224" if quick_gelu else "vit_base_patch16_clip_224"
    text = None
    if "token_embedding.weight" in state and project is not None:
        text = _clip_text(state, project, text_heads, quick_gelu)
    return Architecture(name, kwargs, out, kwargs["img_size"], text)


def _clip_text(
    state: State, project: Tensor, heads: int | None, quick_gelu: bool
) -> tuple[dict[str, Any], State]:
    """Arguments and weights of `SharedSpace`."""
    words, places = state["token_embedding.weight"], _needed(state, "positional_embedding")
    last = _needed(state, "text_projection")
    dim = words.shape[1]
    kwargs = {
        "image_dim": project.shape[0], "vocabulary": words.shape[0], "context": places.shape[0],
        "dim": dim, "depth": count(state, r"transformer\.resblocks\.(\d+)\."),
        "heads": heads or max(dim // 64, 1), "out": last.shape[1],
        "quick_gelu": quick_gelu,
    }  # fmt: skip
    out: State = {
        "tower.token_embedding.weight": words,
        "tower.positional_embedding": places,
        "tower.projection.weight": last.T.contiguous(),
        "image.weight": project.T.contiguous(),
        "log_scale": state["logit_scale"],
    }
    for name, value in state.items():
        if name.startswith(("transformer.", "ln_final.")):
            out["tower." + _renamed(name, {"ln_final.": "norm."})] = value
    return kwargs, out


def _renamed(name: str, ends: Mapping[str, str]) -> str:
    """A name of CLIP's transformer as timm's, and ours, has it."""
    for old, new in {
        **ends, "transformer.resblocks.": "blocks.", ".attn.in_proj_": ".attn.qkv.",
        ".attn.out_proj.": ".attn.proj.", ".ln_1.": ".norm1.", ".ln_2.": ".norm2.",
        ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.",
    }.items():  # fmt: skip
        name = name.replace(old, new)
    return name


def _side(places: int) -> int:
    """Patches along one side of a square grid."""
    side = math.isqrt(places)
    if side * side != places:
        raise DataError(
            f"The position embeddings are of {places} patches, which are no square grid."
        )
    return side


def _needed(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor that every file of this layout has."""
    if name not in state:
        some = ", ".join(list(state)[:5])
        raise DataError(
            f"The file has no tensor {name!r}, so it is of another layout. Its first names are: "
            f"{some or 'none'}. Is --as right?"
        )
    return state[name]

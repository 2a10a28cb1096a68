"""Architectures of official checkpoints: from names and shapes of tensors to timm's.

The tensors come without prefixes and projection heads (see `official`). Sizes follow from their
shapes; the number of attention heads does not: it comes from the family or the user.
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
# Width -> number of attention heads of published networks; for other widths it must be given.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}
_RESNETS = {  # blocks of each of the four stages, and whether they are bottlenecks
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
        name: name of the backbone for `nolabel.backbones.build`.
        kwargs: keyword arguments for `nolabel.backbones.build`.
        tensors: weights by timm's names.
        image_size: side in pixels of the images that it was trained on.
        text: arguments and weights of the text tower (`SharedSpace`), or None.
    """

    name: str
    kwargs: dict[str, Any]
    tensors: State
    image_size: int
    text: tuple[dict[str, Any], State] | None = None


def count_indices(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern` captures at the start of a name."""
    numbers = [int(m.group(1)) for name in state if (m := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def number_of_heads(width: int, heads: int | None, special: Mapping[int, int] | None = None) -> int:
    """The number of attention heads of a transformer.

    Args:
        width: width of its tokens.
        heads: the user's number; None takes the published one.
        special: width -> heads where the family differs from `HEADS`.

    Raises:
        UsageError: not known, or no divisor of the width.
    """
    heads = heads or {**HEADS, **(special or {})}.get(width)
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
    """Reads a ViT with DINO's and timm's names; also the variants of BEiT and DINOv2.

    Args:
        state: the tensors.
        heads: number of attention heads; None takes the published one.
        special: width -> heads where the family differs from `HEADS`.
        mean_pool: whether the embedding of a BEiT is the mean of its patches, not its class token.

    Raises:
        UsageError: the number of heads is not known or does not fit.
        DataError: not this layout.
    """
    state = dict(state)
    weight = _required(state, "patch_embed.proj.weight")
    width, channels, patch = weight.shape[0], weight.shape[1], weight.shape[-1]
    depth = count_indices(state, r"blocks\.(\d+)\.")
    kwargs: dict[str, Any] = {
        "patch_size": patch, "embed_dim": width, "depth": depth,
        "num_heads": number_of_heads(width, heads, special),
    }  # fmt: skip
    if channels != 3:
        kwargs["in_chans"] = channels
    relative = [n for n in state if n.endswith("relative_position_bias_table")]
    if relative:
        return _beit(state, kwargs, relative, mean_pool)
    positions = _required(state, "pos_embed")
    if (registers := state.pop("register_tokens", None)) is not None:
        # timm adds no position embedding to the class token here, so it is added to its weights.
        state["reg_token"] = registers
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions = positions[:, 1:]
        kwargs |= {"reg_tokens": registers.shape[1], "no_embed_class": True}
    patches = positions.shape[1] - (0 if registers is not None else 1)
    kwargs["img_size"] = _grid_side(patches) * patch
    _set_mlp_ratio(state, kwargs, depth)
    if "blocks.0.ls1.gamma" in state:
        kwargs["init_values"] = 1e-5
    for i in range(depth):
        a = f"blocks.{i}.attn."
        if a + "q_bias" in state:  # official ViTs of this form have no bias on the keys
            q, v = state.pop(a + "q_bias"), state.pop(a + "v_bias")
            state[a + "qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    if "blocks.0.attn.qkv.bias" not in state:
        kwargs["qkv_bias"] = False
    if "fc_norm.weight" in state:
        kwargs["global_pool"] = "avg"
    return Architecture("vit_base_patch16_224", kwargs, state, kwargs["img_size"])


def _set_mlp_ratio(state: State, kwargs: dict[str, Any], depth: int) -> None:
    """Sets the MLP ratio; renames the tensors of gated MLPs (SwiGLU)."""
    width = kwargs["embed_dim"]
    if "blocks.0.mlp.w12.weight" in state:
        for i in range(depth):
            for old, new in (("w12", "fc1"), ("w3", "fc2")):
                for kind in ("weight", "bias"):
                    name = f"blocks.{i}.mlp.{old}.{kind}"
                    if name in state:
                        state[f"blocks.{i}.mlp.{new}.{kind}"] = state.pop(name)
        inner = (
            state["blocks.0.mlp.fc1.weight"].shape[0] // 2
        )  # two thirds of width * ratio, rounded up
        kwargs |= {"swiglu": True, "mlp_ratio": _gated_mlp_ratio(inner, width)}
    elif "blocks.0.mlp.fc1.weight" in state:
        kwargs["mlp_ratio"] = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    else:
        raise DataError(
            "The file's MLPs are neither plain (fc1, fc2) nor SwiGLU (w12, w3) "
            f"({', '.join(sorted(n for n in state if n.startswith('blocks.0.mlp.')))})."
        )


def _gated_mlp_ratio(inner: int, width: int) -> float:
    """MLP ratio for which a SwiGLU has the width `inner` (2/3 of it, rounded up to 8)."""
    return 4.0 if (int(int(width * 4.0) * 2 / 3) + 7) // 8 * 8 == inner else 1.5 * inner / width


def _beit(
    state: State, kwargs: dict[str, Any], relative: list[str], mean_pool: bool
) -> Architecture:
    """Reads a BEiT; timm has the official names and computes the relative position index."""
    rows = state[relative[0]].shape[0] - 3  # the last three are for the class token
    grid = (math.isqrt(rows) + 1) // 2
    if (2 * grid - 1) ** 2 != rows:
        raise DataError(f"{relative[0]!r} has {rows + 3} rows, which fit no square grid.")
    kwargs |= {
        "img_size": grid * kwargs["patch_size"],
        "use_abs_pos_emb": "pos_embed" in state,
        "use_rel_pos_bias": any(n.startswith("blocks.") for n in relative),
        "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in state,
    }
    _set_mlp_ratio(state, kwargs, kwargs["depth"])
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
    """Reads a Swin: patch merging ends a stage in the official names and begins one in timm's.

    Args:
        state: the tensors.
        image_size: side in pixels; it does not follow from the tensors, and None takes 32 * window.

    Raises:
        DataError: not this layout.
    """
    out: State = {}
    for name, value in state.items():
        m = re.match(r"layers\.(\d+)\.downsample\.(.*)", name)
        out[f"layers.{int(m.group(1)) + 1}.downsample.{m.group(2)}" if m else name] = value
    weight = _required(state, "patch_embed.proj.weight")
    stages = count_indices(state, r"layers\.(\d+)\.")
    depths = [count_indices(state, rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)]
    tables = [
        _required(state, f"layers.{i}.blocks.0.attn.relative_position_bias_table")
        for i in range(stages)
    ]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    width = weight.shape[0]
    ratio = _required(state, "layers.0.blocks.0.mlp.fc1.weight").shape[0] / width
    kwargs: dict[str, Any] = {
        "img_size": image_size or 32 * window, "patch_size": weight.shape[-1], "embed_dim": width,
        "depths": depths, "num_heads": [t.shape[1] for t in tables], "window_size": window,
        "mlp_ratio": ratio,
    }  # fmt: skip
    if weight.shape[1] != 3:
        kwargs["in_chans"] = weight.shape[1]
    return Architecture("swin_tiny_patch4_window7_224", kwargs, out, kwargs["img_size"])


def resnet(state: State) -> Architecture:
    """Reads a ResNet with torchvision's names, which are timm's.

    Raises:
        DataError: not this layout, or not a known ResNet.
    """
    stem = _required(state, "conv1.weight")
    a, b, c, d = blocks = [count_indices(state, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)]
    bottleneck = "layer1.0.conv3.weight" in state
    name = _RESNETS.get((a, b, c, d, bottleneck))
    if name is None:
        convolutions = "three" if bottleneck else "two"
        raise DataError(
            f"No known ResNet has stages of {tuple(blocks)} blocks of {convolutions} convolutions "
            "each. Known are ResNet-18, 34, 50, 101 and 152."
        )
    if stem.shape[-1] != 7:
        raise DataError(
            f"The first convolution is {stem.shape[-1]} x {stem.shape[-1]}; ResNets of the "
            "published layouts begin with 7 x 7."
        )
    kwargs: dict[str, Any] = {}
    if stem.shape[1] != 3:
        kwargs["in_chans"] = stem.shape[1]
    if stem.shape[0] != 64:  # a wide ResNet
        widths = [_required(state, f"layer{i}.0.conv1.weight").shape[0] for i in (1, 2, 3, 4)]
        kwargs |= {"stem_width": stem.shape[0], "channels": widths}
    return Architecture(name, kwargs, dict(state), 224)


def clip(
    state: State, heads: int | None, text_heads: int | None, *, quick_gelu: bool
) -> Architecture:
    """Reads CLIP: the image tower becomes timm's ViT, the text tower `SharedSpace`.

    Args:
        state: the tensors.
        heads: attention heads of the image tower; None takes heads of width 64, as published.
        text_heads: the same for the text tower.
        quick_gelu: whether the activation is QuickGELU.

    Raises:
        DataError: not this layout, or CLIP's ResNet.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise DataError(
            "This CLIP has a ResNet with attention pooling; only its ViTs are supported."
        )
    vision = {n[7:]: v for n, v in state.items() if n.startswith("visual.")}
    weight = _required(vision, "conv1.weight")
    width, patch = weight.shape[0], weight.shape[-1]
    positions = vision.pop("positional_embedding")
    out: State = {
        "patch_embed.proj.weight": vision.pop("conv1.weight"),
        "cls_token": vision.pop("class_embedding").reshape(1, 1, -1),
        "pos_embed": positions[None],
    }
    project = vision.pop("proj", None)
    depth = count_indices(vision, r"transformer\.resblocks\.(\d+)\.")
    kwargs: dict[str, Any] = {
        "patch_size": patch, "embed_dim": width, "depth": depth,
        "num_heads": heads or max(width // 64, 1),
        "img_size": _grid_side(positions.shape[0] - 1) * patch,
        "mlp_ratio": _required(vision, "transformer.resblocks.0.mlp.c_fc.weight").shape[0] / width,
    }  # fmt: skip
    for name, value in vision.items():
        out[_rename(name, {"ln_pre.": "norm_pre.", "ln_post.": "norm."})] = value
    name = "vit_base_patch16_clip_quickgelu_224" if quick_gelu else "vit_base_patch16_clip_224"
    text = None
    if "token_embedding.weight" in state and project is not None:
        text = _clip_text(state, project, text_heads, quick_gelu)
    return Architecture(name, kwargs, out, kwargs["img_size"], text)


def _clip_text(
    state: State, project: Tensor, heads: int | None, quick_gelu: bool
) -> tuple[dict[str, Any], State]:
    """Arguments and weights of `SharedSpace`."""
    tokens, positions = state["token_embedding.weight"], _required(state, "positional_embedding")
    projection = _required(state, "text_projection")
    dim = tokens.shape[1]
    kwargs = {
        "image_dim": project.shape[0], "vocabulary": tokens.shape[0], "context": positions.shape[0],
        "dim": dim, "depth": count_indices(state, r"transformer\.resblocks\.(\d+)\."),
        "heads": heads or max(dim // 64, 1), "out": projection.shape[1],
        "quick_gelu": quick_gelu,
    }  # fmt: skip
    out: State = {
        "tower.token_embedding.weight": tokens,
        "tower.positional_embedding": positions,
        "tower.projection.weight": projection.T.contiguous(),
        "image.weight": project.T.contiguous(),
        "log_scale": state["logit_scale"],
    }
    for name, value in state.items():
        if name.startswith(("transformer.", "ln_final.")):
            out["tower." + _rename(name, {"ln_final.": "norm."})] = value
    return kwargs, out


def _rename(name: str, norms: Mapping[str, str]) -> str:
    """timm's name (and ours) of a tensor of CLIP's transformers; `norms` are the outer norms'."""
    for old, new in {
        **norms, "transformer.resblocks.": "blocks.", ".attn.in_proj_": ".attn.qkv.",
        ".attn.out_proj.": ".attn.proj.", ".ln_1.": ".norm1.", ".ln_2.": ".norm2.",
        ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.",
    }.items():  # fmt: skip
        name = name.replace(old, new)
    return name


def _grid_side(patches: int) -> int:
    """Number of patches along one side of a square grid."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise DataError(
            f"The position embeddings are of {patches} patches, which are no square grid."
        )
    return side


def _required(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor that every file of this layout has."""
    if name not in state:
        present = ", ".join(list(state)[:5])
        raise DataError(
            f"The file has no tensor {name!r}, so it is of another layout. Its first names are: "
            f"{present or 'none'}. Is --as right?"
        )
    return state[name]

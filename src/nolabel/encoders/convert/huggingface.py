"""Converts networks with timm's names to the configurations and names of transformers.

Each function returns the content of config.json and the tensors. The names are those of the
published checkpoints, which every version of transformers reads.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.layers import GluMlp, SwiGLU
from torch import Tensor

from nolabel.backbones.base import Backbone
from nolabel.backbones.beit import BEiT
from nolabel.backbones.resnet import ResNet
from nolabel.backbones.swin import Swin
from nolabel.backbones.vit import ViT
from nolabel.errors import UsageError

State = dict[str, Tensor]


def convert(backbone: Backbone) -> tuple[dict[str, Any], State]:
    """Configuration and tensors of the equivalent network in transformers.

    Args:
        backbone: the network.

    Returns:
        Content of config.json, and the tensors on the CPU by name.

    Raises:
        UsageError: transformers has no such network.
    """
    state = {k: v.detach().cpu().clone() for k, v in backbone.net.state_dict().items()}
    if isinstance(backbone, ViT):
        return _vit(backbone, state)
    if isinstance(backbone, BEiT):
        return _beit(backbone, state)
    if isinstance(backbone, Swin):
        return _swin(backbone, state)
    if isinstance(backbone, ResNet):
        return _resnet(backbone, state)
    raise UsageError(
        f"{backbone.name!r} cannot be exported to transformers: ViT, BEiT, Swin and ResNet can. "
        "Use --to onnx."
    )


def _unsupported(what: str) -> UsageError:
    return UsageError(f"transformers has no network with {what}. Use --to onnx.")


def _common_config(backbone: ViT | BEiT) -> dict[str, Any]:
    """Fields that the configurations of transformers have in common."""
    block = backbone.net.blocks[0]
    return {
        "hidden_size": backbone.dim, "num_hidden_layers": backbone.depth,
        "num_attention_heads": block.attn.num_heads, "image_size": backbone.image_size,
        "patch_size": backbone.patch_size, "num_channels": backbone.channels,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": float(block.norm1.eps), "torch_dtype": "float32",
    }  # fmt: skip


def _split_qkv(out: State, name: str, new: str, weight: Tensor, bias: Tensor | None) -> None:
    """Splits a fused qkv layer into query, key and value; adds them to `out`."""
    for i, part in enumerate(("query", "key", "value")):
        out[f"{new}{part}.weight"] = weight.chunk(3)[i].contiguous()
        if bias is not None:
            out[f"{new}{part}.bias"] = bias.chunk(3)[i].contiguous()


def _vit(backbone: ViT, state: State) -> tuple[dict[str, Any], State]:
    net = backbone.net
    if type(net.norm_pre).__name__ != "Identity":
        return _clip(backbone, state)
    if net.fc_norm is not None and type(net.fc_norm).__name__ != "Identity":
        raise _unsupported("a norm behind the pooling instead of before it")
    if net.cls_token is None or net.pos_embed is None:
        raise _unsupported("no class token or no positions")
    config = _common_config(backbone)
    hidden = net.blocks[0].mlp.fc1.out_features
    scaled, registers = "blocks.0.ls1.gamma" in state, net.reg_token is not None
    config["qkv_bias"] = "blocks.0.attn.qkv.bias" in state
    positions = state.pop("pos_embed")
    token = state.pop("cls_token")
    if registers and net.no_embed_class:
        positions = torch.cat([torch.zeros_like(token), positions], 1)
    elif registers:
        raise _unsupported("registers that have positions")
    gated = isinstance(net.blocks[0].mlp, SwiGLU | GluMlp)
    out: State = {
        "embeddings.cls_token": token,
        "embeddings.position_embeddings": positions,
        "embeddings.patch_embeddings.projection.weight": state.pop("patch_embed.proj.weight"),
        "embeddings.patch_embeddings.projection.bias": state.pop("patch_embed.proj.bias"),
        "layernorm.weight": state.pop("norm.weight"), "layernorm.bias": state.pop("norm.bias"),
    }  # fmt: skip
    if scaled or registers or gated:
        config |= {
            "model_type": "dinov2_with_registers" if registers else "dinov2",
            "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
            "mlp_ratio": _integer_mlp_ratio(hidden, backbone.dim, gated), "use_swiglu_ffn": gated,
            "drop_path_rate": 0.0,
            "layerscale_value": 1.0,
        }  # fmt: skip
        out["embeddings.mask_token"] = torch.zeros(1, backbone.dim)
        if registers:
            config["num_register_tokens"] = net.reg_token.shape[1]
            out["embeddings.register_tokens"] = state.pop("reg_token")
        names = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        if gated:
            names |= {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
        for i in range(backbone.depth):
            for k in (1, 2):
                gamma = state.pop(f"blocks.{i}.ls{k}.gamma", torch.ones(backbone.dim))
                out[f"encoder.layer.{i}.layer_scale{k}.lambda1"] = gamma
    else:
        config |= {"model_type": "vit", "architectures": ["ViTModel"], "intermediate_size": hidden}
        names = {"norm1": "layernorm_before", "norm2": "layernorm_after",
                 "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    _rename_blocks(state, out, names | {"attn.proj": "attention.output.dense"})
    return config, out


def _integer_mlp_ratio(hidden: int, width: int, gated: bool) -> int:
    """The integer ratio from which transformers computes the width of an MLP."""
    for ratio in range(1, 17):
        inner = (int(width * ratio * 2 / 3) + 7) // 8 * 8
        if hidden == (2 * inner if gated else width * ratio):
            return ratio
    raise _unsupported(f"an MLP of {hidden} in a width of {width}")


def _rename_blocks(state: State, out: State, names: dict[str, str]) -> None:
    """Adds the remaining tensors, those of the blocks, to `out` by their new names."""
    for name, value in state.items():
        m = re.match(r"blocks\.(\d+)\.(.*)\.(weight|bias)$", name)
        if m is None:
            raise _unsupported(f"the tensor {name!r}")
        i, part, kind = m.groups()
        if part == "attn.qkv":
            if kind == "weight":
                bias = state.get(f"blocks.{i}.attn.qkv.bias")
                _split_qkv(out, name, f"encoder.layer.{i}.attention.attention.", value, bias)
        elif part in names:
            out[f"encoder.layer.{i}.{names[part]}.{kind}"] = value
        else:
            raise _unsupported(f"the tensor {name!r}")


def _clip(backbone: ViT, state: State) -> tuple[dict[str, Any], State]:
    net = backbone.net
    act = type(net.blocks[0].mlp.act).__name__
    config = _common_config(backbone) | {
        "model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"],
        "intermediate_size": net.blocks[0].mlp.fc1.out_features, "attention_dropout": 0.0,
        "hidden_act": "quick_gelu" if "Quick" in act else "gelu",
        "projection_dim": backbone.dim,
    }  # fmt: skip
    pre = "vision_model."
    out: State = {
        f"{pre}embeddings.class_embedding": state.pop("cls_token").flatten(),
        f"{pre}embeddings.patch_embedding.weight": state.pop("patch_embed.proj.weight"),
        f"{pre}embeddings.position_embedding.weight": state.pop("pos_embed")[0],
    }
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2", "attn.proj": "self_attn.out_proj"}  # fmt: skip
    for name, value in state.items():
        if name.startswith(("norm_pre.", "norm.")):
            new = "pre_layrnorm" if name.startswith("norm_pre.") else "post_layernorm"
            out[f"{pre}{new}.{name.rpartition('.')[2]}"] = value
            continue
        m = re.match(r"blocks\.(\d+)\.(.*)\.(weight|bias)$", name)
        if m is None or not (m.group(2) in names or m.group(2) == "attn.qkv"):
            raise _unsupported(f"the tensor {name!r}")
        i, part, kind = m.groups()
        if part == "attn.qkv":
            for third, letter in zip(value.chunk(3), "qkv", strict=True):
                key = f"{pre}encoder.layers.{i}.self_attn.{letter}_proj.{kind}"
                out[key] = third.contiguous()
        else:
            out[f"{pre}encoder.layers.{i}.{names[part]}.{kind}"] = value
    return config, out


def _beit(backbone: BEiT, state: State) -> tuple[dict[str, Any], State]:
    net = backbone.net
    if type(net.fc_norm).__name__ != "Identity":
        raise _unsupported("a norm behind the pooling instead of before it")
    config = _common_config(backbone) | {
        "model_type": "beit", "architectures": ["BeitModel"],
        "intermediate_size": net.blocks[0].mlp.fc1.out_features, "use_mean_pooling": False,
        "use_absolute_position_embeddings": net.pos_embed is not None,
        "use_relative_position_bias": net.blocks[0].attn.relative_position_bias_table is not None,
        "use_shared_relative_position_bias": net.rel_pos_bias is not None,
        "layer_scale_init_value": 0.1 if net.blocks[0].gamma_1 is not None else 0.0,
        "use_mask_token": False, "drop_path_rate": 0.0,
    }  # fmt: skip
    embedding_names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
        "rel_pos_bias.relative_position_bias_table":
            "encoder.relative_position_bias.relative_position_bias_table",
    }  # fmt: skip
    attention = "attention.attention."
    table = "relative_position_bias_table"
    names = {
        "gamma_1": "lambda_1", "gamma_2": "lambda_2", "attn.q_bias": f"{attention}query.bias",
        "attn.v_bias": f"{attention}value.bias",
        f"attn.{table}": f"{attention}relative_position_bias.{table}",
    }  # fmt: skip
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
             "attn.proj": "attention.output.dense"}  # fmt: skip
    names |= {f"{a}.{k}": f"{b}.{k}" for a, b in parts.items() for k in ("weight", "bias")}
    out: State = {}
    for name, value in state.items():
        m = re.match(r"blocks\.(\d+)\.(.*)$", name)
        if name in embedding_names:
            out[embedding_names[name]] = value
        elif m and m.group(2) == "attn.qkv.weight":
            _split_qkv(out, name, f"encoder.layer.{m.group(1)}.{attention}", value, None)
        elif m and m.group(2) in names:
            out[f"encoder.layer.{m.group(1)}.{names[m.group(2)]}"] = value
        else:
            raise _unsupported(f"the tensor {name!r}")
    return config, out


def _swin(backbone: Swin, state: State) -> tuple[dict[str, Any], State]:
    net = backbone.net
    stages = net.layers
    first = stages[0].blocks[0]
    window = int(backbone.kwargs.get("window_size", 7))
    config = {
        "model_type": "swin", "architectures": ["SwinModel"], "image_size": backbone.image_size,
        "patch_size": backbone.mask_patch, "num_channels": backbone.channels,
        "embed_dim": backbone.mask_dim, "depths": [len(s.blocks) for s in stages],
        "num_heads": [s.blocks[0].attn.num_heads for s in stages], "window_size": window,
        "mlp_ratio": first.mlp.fc1.out_features / backbone.mask_dim, "qkv_bias": True,
        "hidden_act": "gelu", "layer_norm_eps": float(first.norm1.eps), "drop_path_rate": 0.0,
        "use_absolute_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
             "attn.proj": "attention.output.dense"}  # fmt: skip
    out: State = {}
    for name, value in state.items():
        kind = name.rpartition(".")[2]
        block = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.(.*)\.(?:weight|bias)$", name)
        merge = re.match(r"layers\.(\d+)\.downsample\.(.*)$", name)
        table = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(relative_position_bias_table)$",
                         name)  # fmt: skip
        if table:
            i, j, last = table.groups()
            out[f"encoder.layers.{i}.blocks.{j}.attention.self.{last}"] = value
        elif block and block.group(3) == "attn.qkv":
            i, j, _ = block.groups()
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                key = f"encoder.layers.{i}.blocks.{j}.attention.self.{part}.{kind}"
                out[key] = third.contiguous()
        elif block and block.group(3) in names:
            i, j, part = block.groups()
            out[f"encoder.layers.{i}.blocks.{j}.{names[part]}.{kind}"] = value
        elif merge:  # patch merging: begins a stage in timm, ends one here
            out[f"encoder.layers.{int(merge.group(1)) - 1}.downsample.{merge.group(2)}"] = value
        elif name.startswith("patch_embed.proj."):
            out[f"embeddings.patch_embeddings.projection.{kind}"] = value
        elif name.startswith("patch_embed.norm."):
            out[f"embeddings.norm.{kind}"] = value
        elif name.startswith("norm."):
            out[f"layernorm.{kind}"] = value
        else:
            raise _unsupported(f"the tensor {name!r}")
    return config, out


def _resnet(backbone: ResNet, state: State) -> tuple[dict[str, Any], State]:
    net = backbone.net
    if not backbone.maxpool:
        raise _unsupported("no max pooling in its stem")
    if backbone.kwargs.get("output_stride", 32) != 32:
        raise _unsupported("an output stride other than 32")
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    bottleneck = "layer1.0.conv3.weight" in state
    config = {
        "model_type": "resnet", "architectures": ["ResNetModel"],
        "num_channels": backbone.channels, "embedding_size": net.conv1.out_channels,
        "hidden_sizes": [
            (s[0].conv3 if bottleneck else s[0].conv2).out_channels for s in stages
        ],
        "depths": [len(s) for s in stages], "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False,
        "torch_dtype": "float32",
    }  # fmt: skip
    layer_names = {"conv": "convolution", "bn": "normalization"}
    out: State = {}
    for name, value in state.items():
        end = name.rpartition(".")[2]
        stem = re.match(r"(conv|bn)1\.", name)
        inner = re.match(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.", name)
        short = re.match(r"layer(\d)\.(\d+)\.downsample\.(\d)\.", name)
        if stem:
            out[f"embedder.embedder.{layer_names[stem.group(1)]}.{end}"] = value
        elif inner:
            s, b, what, n = inner.groups()
            key = f"encoder.stages.{int(s) - 1}.layers.{b}.layer.{int(n) - 1}.{layer_names[what]}"
            out[f"{key}.{end}"] = value
        elif short:
            s, b, n = short.groups()
            what = "convolution" if n == "0" else "normalization"
            out[f"encoder.stages.{int(s) - 1}.layers.{b}.shortcut.{what}.{end}"] = value
        else:
            raise _unsupported(f"the tensor {name!r}")
    return config, out

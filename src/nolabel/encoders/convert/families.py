"""Layouts of published checkpoints: what a file holds, and how its network expects images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nolabel.catalogue import Entry, by_name
from nolabel.views import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class LayoutInfo(Entry):
    """One layout of published checkpoints; its name is that of the method that they come from.

    Attributes:
        kinds: networks that it comes with: "vit", "resnet", "swin", "clip".
        inside: keys under which a training checkpoint keeps the tensors, the branch's name first.
        roots: prefixes of the encoder; where one occurs, names without it belong to something else.
        drop: patterns of names that are no part of the encoder.
        positions: how position embeddings are resized (`resize_positions`).
        mean, std: of the images that it was trained on.
        heads: width -> heads, where they differ from the usual.
    """

    family: str = "published checkpoints (nolabel import FILE --as NAME)"
    kinds: tuple[str, ...]
    inside: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    positions: str = "mae"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    heads: Mapping[int, int] | None = None


_RESNET = (r"(projection_head|projector|prototypes|predictor|bn|projection)\b.*", r"lambd.*")
LAYOUTS: dict[str, LayoutInfo] = by_name(
    LayoutInfo(
        name="dino",
        description="DINO's ViTs and ResNet-50",
        paper="Caron et al. 2021, arXiv 2104.14294",
        kinds=("vit", "resnet"),
        inside=("teacher", "student", "state_dict"),
        roots=("backbone.",),
        drop=(r"head\..*",),
        positions="dino",
    ),
    LayoutInfo(
        name="ibot",
        description="iBOT's ViTs and Swins",
        paper="Zhou et al. 2021, arXiv 2111.07832",
        kinds=("vit", "swin"),
        inside=("teacher", "student", "state_dict"),
        roots=("backbone.",),
        drop=(r"head\..*", "masked_embed"),
        positions="dino",
    ),
    LayoutInfo(
        name="dinov2",
        description="DINOv2's ViTs, with and without registers",
        paper="Oquab et al. 2023, arXiv 2304.07193",
        kinds=("vit",),
        inside=("teacher", "student", "model"),
        roots=("backbone.",),
        drop=(r"(dino_head|ibot_head)\..*", "mask_token"),
        positions="dino",
    ),
    LayoutInfo(
        name="mae",
        description="MAE's ViTs, without the decoder",
        paper="He et al. 2021, arXiv 2111.06377",
        kinds=("vit",),
        inside=("model",),
        drop=(r"decoder_.*", "mask_token"),
    ),
    LayoutInfo(
        name="simmim",
        description="SimMIM's Swins and ViTs",
        paper="Xie et al. 2021, arXiv 2111.09886",
        kinds=("swin", "vit"),
        inside=("model",),
        roots=("encoder.",),
        drop=(r"decoder\..*", "mask_token"),
    ),
    LayoutInfo(
        name="beit",
        description="BEiT's ViTs, before and after fine-tuning",
        paper="Bao et al. 2021, arXiv 2106.08254",
        kinds=("vit",),
        inside=("model", "module"),
        drop=(r"lm_head\..*", "mask_token", r"cls_pt_layers\..*"),
        mean=HALF,
        std=HALF,
    ),
    LayoutInfo(
        name="eva",
        description="EVA's ViTs",
        paper="Fang et al. 2022, arXiv 2211.07636",
        kinds=("vit",),
        inside=("model", "module"),
        drop=(r"lm_head\..*", "mask_token"),
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    LayoutInfo(
        name="mocov2",
        description="MoCo v2's ResNet-50",
        paper="Chen et al. 2020, arXiv 2003.04297",
        kinds=("resnet",),
        inside=("state_dict",),
        roots=("encoder_q.",),
        drop=(r"encoder_k\..*", r"queue.*", r"fc\..*"),
    ),
    LayoutInfo(
        name="mocov3",
        description="MoCo v3's ViTs and ResNet-50",
        paper="Chen et al. 2021, arXiv 2104.02057",
        kinds=("vit", "resnet"),
        inside=("state_dict",),
        roots=("base_encoder.",),
        drop=(r"momentum_encoder\..*", r"predictor\..*", r"(head|fc)\..*"),
        positions="timm",
        heads={384: 12},
    ),
    LayoutInfo(
        name="byol",
        description="BYOL's ResNets in PyTorch",
        paper="Grill et al. 2020, arXiv 2006.07733",
        kinds=("resnet",),
        inside=("state_dict", "model"),
        roots=("online_encoder.", "encoder.", "backbone."),
        drop=(*_RESNET, r"target_.*", r"online_.*"),
    ),
    LayoutInfo(
        name="swav",
        description="SwAV's and DeepCluster v2's ResNets",
        paper="Caron et al. 2020, arXiv 2006.09882; DeepCluster v2",
        kinds=("resnet",),
        inside=("state_dict",),
        drop=_RESNET,
    ),
    LayoutInfo(
        name="barlow",
        description="Barlow Twins' ResNet-50",
        paper="Zbontar et al. 2021, arXiv 2103.03230",
        kinds=("resnet",),
        inside=("model",),
        roots=("backbone.",),
        drop=_RESNET,
    ),
    LayoutInfo(
        name="simclr",
        description="SimCLR's ResNets in PyTorch",
        paper="Chen et al. 2020, arXiv 2002.05709",
        kinds=("resnet",),
        inside=("state_dict", "model"),
        roots=("encoder.", "backbone."),
        drop=(*_RESNET, r"fc\..*"),
    ),
    LayoutInfo(
        name="clip",
        description="CLIP's ViTs with their text towers (OpenAI, OpenCLIP)",
        paper="Radford et al. 2021, arXiv 2103.00020",
        kinds=("clip",),
        inside=("state_dict", "model"),
        drop=("input_resolution", "context_length", "vocab_size", "attn_mask"),
        positions="timm",
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
)

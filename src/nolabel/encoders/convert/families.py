"""Layouts of published checkpoints: where a file keeps the encoder, and how it expects images."""

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
    """One layout of published checkpoints, named after its method.

    Attributes:
        architectures: networks that were published in it: "vit", "resnet", "swin", "clip".
        branches: keys under which a training checkpoint may keep the tensors, preferred first.
        prefixes: possible prefixes of the encoder's names; if a file has one, tensors without it
            are not part of the encoder.
        drop: patterns (`re.fullmatch`) of names that are not part of the encoder.
        positions: how position embeddings are interpolated (`resize_positions`).
        mean: mean of each channel of the training images, for pixels in 0..1.
        std: standard deviation of each channel of the training images.
        heads: width -> number of attention heads, where it differs from `HEADS`.
    """

    family: str = "published checkpoints (nolabel import FILE --as NAME)"
    architectures: tuple[str, ...]
    branches: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
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
        architectures=("vit", "resnet"),
        branches=("teacher", "student", "state_dict"),
        prefixes=("backbone.",),
        drop=(r"head\..*",),
        positions="dino",
    ),
    LayoutInfo(
        name="ibot",
        description="iBOT's ViTs and Swins",
        paper="Zhou et al. 2021, arXiv 2111.07832",
        architectures=("vit", "swin"),
        branches=("teacher", "student", "state_dict"),
        prefixes=("backbone.",),
        drop=(r"head\..*", "masked_embed"),
        positions="dino",
    ),
    LayoutInfo(
        name="dinov2",
        description="DINOv2's ViTs, with and without registers",
        paper="Oquab et al. 2023, arXiv 2304.07193",
        architectures=("vit",),
        branches=("teacher", "student", "model"),
        prefixes=("backbone.",),
        drop=(r"(dino_head|ibot_head)\..*", "mask_token"),
        positions="dino",
    ),
    LayoutInfo(
        name="mae",
        description="MAE's ViTs, without the decoder",
        paper="He et al. 2021, arXiv 2111.06377",
        architectures=("vit",),
        branches=("model",),
        drop=(r"decoder_.*", "mask_token"),
    ),
    LayoutInfo(
        name="simmim",
        description="SimMIM's Swins and ViTs",
        paper="Xie et al. 2021, arXiv 2111.09886",
        architectures=("swin", "vit"),
        branches=("model",),
        prefixes=("encoder.",),
        drop=(r"decoder\..*", "mask_token"),
    ),
    LayoutInfo(
        name="beit",
        description="BEiT's ViTs, before and after fine-tuning",
        paper="Bao et al. 2021, arXiv 2106.08254",
        architectures=("vit",),
        branches=("model", "module"),
        drop=(r"lm_head\..*", "mask_token", r"cls_pt_layers\..*"),
        mean=HALF,
        std=HALF,
    ),
    LayoutInfo(
        name="eva",
        description="EVA's ViTs",
        paper="Fang et al. 2022, arXiv 2211.07636",
        architectures=("vit",),
        branches=("model", "module"),
        drop=(r"lm_head\..*", "mask_token"),
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    LayoutInfo(
        name="mocov2",
        description="MoCo v2's ResNet-50",
        paper="Chen et al. 2020, arXiv 2003.04297",
        architectures=("resnet",),
        branches=("state_dict",),
        prefixes=("encoder_q.",),
        drop=(r"encoder_k\..*", r"queue.*", r"fc\..*"),
    ),
    LayoutInfo(
        name="mocov3",
        description="MoCo v3's ViTs and ResNet-50",
        paper="Chen et al. 2021, arXiv 2104.02057",
        architectures=("vit", "resnet"),
        branches=("state_dict",),
        prefixes=("base_encoder.",),
        drop=(r"momentum_encoder\..*", r"predictor\..*", r"(head|fc)\..*"),
        positions="timm",
        heads={384: 12},
    ),
    LayoutInfo(
        name="byol",
        description="BYOL's ResNets in PyTorch",
        paper="Grill et al. 2020, arXiv 2006.07733",
        architectures=("resnet",),
        branches=("state_dict", "model"),
        prefixes=("online_encoder.", "encoder.", "backbone."),
        drop=(*_RESNET, r"target_.*", r"online_.*"),
    ),
    LayoutInfo(
        name="swav",
        description="SwAV's and DeepCluster v2's ResNets",
        paper="Caron et al. 2020, arXiv 2006.09882; DeepCluster v2",
        architectures=("resnet",),
        branches=("state_dict",),
        drop=_RESNET,
    ),
    LayoutInfo(
        name="barlow",
        description="Barlow Twins' ResNet-50",
        paper="Zbontar et al. 2021, arXiv 2103.03230",
        architectures=("resnet",),
        branches=("model",),
        prefixes=("backbone.",),
        drop=_RESNET,
    ),
    LayoutInfo(
        name="simclr",
        description="SimCLR's ResNets in PyTorch",
        paper="Chen et al. 2020, arXiv 2002.05709",
        architectures=("resnet",),
        branches=("state_dict", "model"),
        prefixes=("encoder.", "backbone."),
        drop=(*_RESNET, r"fc\..*"),
    ),
    LayoutInfo(
        name="clip",
        description="CLIP's ViTs with their text towers (OpenAI, OpenCLIP)",
        paper="Radford et al. 2021, arXiv 2103.00020",
        architectures=("clip",),
        branches=("state_dict", "model"),
        drop=("input_resolution", "context_length", "vocab_size", "attn_mask"),
        positions="timm",
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
)

"""Families of official checkpoints: what a file holds, and how its network expects images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nolabel.views import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """One layout of checkpoints.

    Attributes:
        paper: what trained them.
        kinds: networks that it comes with: "vit", "resnet", "swin", "clip".
        inside: keys under which a training checkpoint keeps the tensors, the branch's name first.
        roots: prefixes of the encoder; where one occurs, names without it belong to something else.
        drop: patterns of names that are no part of the encoder.
        positions: how the family resizes position embeddings (`resize_positions`).
        mean, std: of the images that it was trained on.
        heads: width -> heads, where they differ from the usual.
    """

    paper: str
    kinds: tuple[str, ...]
    inside: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    positions: str = "mae"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    heads: Mapping[int, int] | None = None


_RESNET = (r"(projection_head|projector|prototypes|predictor|bn|projection)\b.*", r"lambd.*")
FAMILIES: dict[str, Family] = {
    "dino": Family(
        "Caron et al. 2021, arXiv 2104.14294", ("vit", "resnet"),
        ("teacher", "student", "state_dict"), ("backbone.",), (r"head\..*",), "dino",
    ),
    "ibot": Family(
        "Zhou et al. 2021, arXiv 2111.07832", ("vit", "swin"),
        ("teacher", "student", "state_dict"), ("backbone.",), (r"head\..*", "masked_embed"),
        "dino",
    ),
    "dinov2": Family(
        "Oquab et al. 2023, arXiv 2304.07193", ("vit",), ("teacher", "student", "model"),
        ("backbone.",), (r"(dino_head|ibot_head)\..*", "mask_token"), "dino",
    ),
    "mae": Family(
        "He et al. 2021, arXiv 2111.06377", ("vit",), ("model",), (),
        (r"decoder_.*", "mask_token"),
    ),
    "simmim": Family(
        "Xie et al. 2021, arXiv 2111.09886", ("swin", "vit"), ("model",), ("encoder.",),
        (r"decoder\..*", "mask_token"),
    ),
    "beit": Family(
        "Bao et al. 2021, arXiv 2106.08254", ("vit",), ("model", "module"), (),
        (r"lm_head\..*", "mask_token", r"cls_pt_layers\..*"), mean=HALF, std=HALF,
    ),
    "eva": Family(
        "Fang et al. 2022, arXiv 2211.07636", ("vit",), ("model", "module"), (),
        (r"lm_head\..*", "mask_token"), mean=CLIP_MEAN, std=CLIP_STD,
    ),
    "mocov2": Family(
        "Chen et al. 2020, arXiv 2003.04297", ("resnet",), ("state_dict",), ("encoder_q.",),
        (r"encoder_k\..*", r"queue.*", r"fc\..*"),
    ),
    "mocov3": Family(
        "Chen et al. 2021, arXiv 2104.02057", ("vit", "resnet"), ("state_dict",),
        ("base_encoder.",), (r"momentum_encoder\..*", r"predictor\..*", r"(head|fc)\..*"),
        "timm", heads={384: 12},
    ),
    "byol": Family(
        "Grill et al. 2020, arXiv 2006.07733", ("resnet",), ("state_dict", "model"),
        ("online_encoder.", "encoder.", "backbone."), (*_RESNET, r"target_.*", r"online_.*"),
    ),
    "swav": Family(
        "Caron et al. 2020, arXiv 2006.09882; DeepCluster v2", ("resnet",), ("state_dict",), (),
        _RESNET,
    ),
    "barlow": Family(
        "Zbontar et al. 2021, arXiv 2103.03230", ("resnet",), ("model",), ("backbone.",), _RESNET,
    ),
    "simclr": Family(
        "Chen et al. 2020, arXiv 2002.05709", ("resnet",), ("state_dict", "model"),
        ("encoder.", "backbone."), (*_RESNET, r"fc\..*"),
    ),
    "clip": Family(
        "Radford et al. 2021, arXiv 2103.00020", ("clip",), ("state_dict", "model"), (),
        ("input_resolution", "context_length", "vocab_size", "attn_mask"), "timm",
        CLIP_MEAN, CLIP_STD,
    ),
}  # fmt: skip

"""The papers' numbers, each group with the place it was read in.

"code" names a file of the official repository at a commit, "paper" the paper itself. Names without
a prefix are the method's own options.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from nolabel import methods, recipes
from nolabel.methods.base import RecipeContext

IMAGENET = 1_281_167


class Row(NamedTuple):
    method: str
    source: str
    numbers: dict[str, object]
    image_size: int = 224
    patch_size: int = 16
    conv: bool = False
    batch_size: int | None = None
    images: int = IMAGENET


TWO_VIEWS_OF_BYOL = {  # MoCo v3 and Barlow Twins take the same two
    "jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2, "blur": (1.0, 0.1), "solarise": (0.0, 0.2),
    "blur_sigma": (0.1, 2.0), "scale": (0.08, 1.0),
}  # fmt: skip
MULTI_CROP_OF_SWAV = {
    "global_scale": (0.14, 1.0), "local_scale": (0.05, 0.14), "local_crops": 6, "local_size": 96,
    "jitter": (0.8, 0.8, 0.8, 0.2), "grey": 0.2, "blur": 0.5, "blur_sigma": (0.1, 2.0),
}  # fmt: skip
LARC_OF_SWAV = {
    "batch_size": 4096, "optim.name": "larc", "optim.lr": 4.8, "optim.lr_start": 0.3,
    "optim.lr_end": 0.0048, "optim.warmup_epochs": 10, "optim.weight_decay": 1e-6,
    "optim.decay_all": True,
}  # fmt: skip

ROWS = (
    Row("dino", "code: main_dino.py, 7c446df", {
        "optim.name": "adamw", "optim.warmup_epochs": 10, "optim.lr_end": 1e-6,
        "optim.weight_decay": 0.04, "optim.weight_decay_end": 0.4, "optim.clip": 3.0,
        "optim.clip_by": "tensor", "optim.beta1": 0.9, "optim.beta2": 0.999,
        "prototypes": 65536, "hidden": 2048, "bottleneck": 256, "norm_last_layer": True,
        "head_batch_norm": False, "student_temperature": 0.1, "teacher_temperature": 0.04,
        "warmup_teacher_temperature": 0.04, "warmup_teacher_temperature_epochs": 0,
        "teacher_momentum": 0.996, "centre_momentum": 0.9, "freeze_last_layer": 1,
        "drop_path": 0.1, "global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4),
        "local_crops": 8, "local_size": 96, "jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2,
        "blur_sigma": (0.1, 2.0),
    }),
    Row("dino", "code: main_dino.py, rate 5e-4 for each 256 images", {"optim.lr": 5e-4},
        batch_size=256),
    Row("dino", "code: README.md, the vanilla run of 100 epochs", {
        "batch_size": 1024, "epochs": 100,
    }),
    Row("ibot", "code: main_ibot.py, loader.py, models/head.py, da316d8", {
        "prototypes": 8192, "shared_head": True, "norm_last_layer": False, "class_weight": 1.0,
        "patch_weight": 1.0, "teacher_temperature": 0.07, "patch_temperature": 0.07,
        "warmup_teacher_temperature": 0.04, "warmup_teacher_temperature_epochs": 30,
        "student_temperature": 0.1, "centre_momentum": 0.9, "teacher_momentum": 0.996,
        "masked": 0.5, "mask_ratio": (0.1, 0.5), "global_scale": (0.25, 1.0),
        "local_scale": (0.05, 0.25), "local_crops": 10, "batch_size": 1024, "epochs": 800,
        "optim.clip": 3.0, "optim.lr": 5e-4 * 1024 / 256, "optim.weight_decay_end": 0.4,
    }),
    Row("dinov2", "code: configs/train/vitl14.yaml, ssl_default_config.yaml, b8931f7", {
        "prototypes": 131072, "patch_prototypes": 131072, "shared_head": False,
        "bottleneck": 384, "patch_bottleneck": 256, "centring": "sinkhorn", "patch_weight": 1.0,
        "koleo": 0.1, "masked": 0.5, "mask_ratio": (0.1, 0.5), "student_temperature": 0.1,
        "teacher_temperature": 0.07, "warmup_teacher_temperature": 0.04,
        "warmup_teacher_temperature_epochs": 30, "teacher_momentum": 0.994,
        "freeze_last_layer": 1, "drop_path": 0.4, "layer_scale": 1e-5,
        "global_scale": (0.32, 1.0), "local_scale": (0.05, 0.32), "local_crops": 8,
        "local_size": 98, "batch_size": 2048, "epochs": 500, "optim.lr": 2e-4 * 2**0.5,
        "optim.warmup_epochs": 80, "optim.weight_decay": 0.04, "optim.weight_decay_end": 0.2,
        "optim.lr_patch": 0.2, "optim.clip": 3.0, "optim.clip_by": "module",
    }, patch_size=14, images=142_000_000),
    Row("mae", "code: models_mae.py, main_pretrain.py, efb2a80; PRETRAIN.md", {
        "mask_ratio": 0.75, "norm_pix": True, "decoder_dim": 512, "decoder_depth": 8,
        "decoder_heads": 16, "scale": (0.2, 1.0), "batch_size": 4096, "epochs": 800,
        "optim.lr": 1.5e-4 * 4096 / 256, "optim.beta1": 0.9, "optim.beta2": 0.95,
        "optim.weight_decay": 0.05, "optim.warmup_epochs": 40, "optim.lr_end": 0.0,
        "optim.clip": None,
    }),
    Row("simmim", "code: configs/swin_base__100ep, models/simmim.py, d3e29bc", {
        "mask_ratio": 0.6, "unit": 32, "scale": (0.67, 1.0), "batch_size": 2048, "epochs": 100,
        "optim.lr": 2e-4 * 2048 / 512, "optim.warmup_epochs": 10, "optim.weight_decay": 0.05,
        "optim.clip": 5.0, "optim.beta2": 0.999,
    }, image_size=192, patch_size=32),
    Row("beit", "code: unilm/beit, 768a3c8, 800 epochs of ImageNet-1k", {
        "mask_ratio": pytest.approx(75 / 196, abs=1e-3), "smallest_block": 16,
        "layer_scale": 0.1, "drop_path": 0.1, "scale": (0.08, 1.0), "jitter": 0.4,
        "batch_size": 2048, "epochs": 800, "optim.lr": 1.5e-3, "optim.beta2": 0.999,
        "optim.weight_decay": 0.05, "optim.clip": 3.0, "optim.lr_end": 1e-5,
        "optim.warmup_epochs": 10,
    }),
    Row("eva", "code: EVA-01, 5623d08", {
        "mask_ratio": pytest.approx(105 / 256, abs=1e-3), "drop_path": 0.1,
        "batch_size": 4096, "epochs": 150, "optim.lr": 1e-3, "optim.beta2": 0.98,
        "optim.eps": 1e-6, "optim.weight_decay": 0.05, "optim.warmup_epochs": 2,
    }, patch_size=14),
    Row("simclr", "code: google-research/simclr", {
        "temperature": 0.1, "hidden": 2048, "projection": 128, "scale": (0.08, 1.0),
        "strength": 1.0, "grey": 0.2, "blur": 0.5, "blur_sigma": (0.1, 2.0),
        "batch_size": 4096, "epochs": 100, "optim.name": "lars", "optim.lr": 4.8,
        "optim.weight_decay": 1e-6, "optim.warmup_epochs": 10,
    }, conv=True),
    Row("mocov2", "code: moco, main_moco.py", {
        "queue": 65536, "temperature": 0.2, "key_momentum": 0.999, "hidden": 2048,
        "projection": 128, "scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2,
        "blur": 0.5, "batch_size": 256, "epochs": 200, "optim.name": "sgd", "optim.lr": 0.03,
        "optim.beta1": 0.9, "optim.weight_decay": 1e-4, "optim.decay_all": True,
    }, conv=True),
    Row("mocov3", "code: moco-v3, c349e6e, ViT", {
        "temperature": 0.2, "key_momentum": 0.99, "hidden": 4096, "projection": 256,
        "freeze_patch": True, "batch_size": 4096, "epochs": 300, "optim.name": "adamw",
        "optim.lr": 1.5e-4 * 4096 / 256, "optim.weight_decay": 0.1, "optim.decay_all": True,
        "optim.warmup_epochs": 40,
    } | TWO_VIEWS_OF_BYOL),
    Row("mocov3", "code: moco-v3, CONFIG.md and main_moco.py, ResNet-50, 300 epochs", {
        "temperature": 1.0, "epochs": 300, "optim.name": "lars", "optim.lr": 0.3 * 4096 / 256,
        "optim.warmup_epochs": 10, "key_momentum": 0.99, "optim.weight_decay": 1e-6,
    }, conv=True),
    Row("byol", "code: deepmind-research/byol, 1000 epochs", {
        "hidden": 4096, "projection": 256, "target_momentum": 0.996, "batch_size": 4096,
        "epochs": 1000, "optim.name": "lars", "optim.lr": 0.2 * 4096 / 256,
        "optim.weight_decay": 1.5e-6, "optim.warmup_epochs": 10,
    } | TWO_VIEWS_OF_BYOL, conv=True),
    Row("barlow", "code: barlowtwins, main.py", {
        "weight": 0.0051, "hidden": 8192, "projection": 8192, "batch_size": 2048,
        "epochs": 1000, "optim.name": "lars", "optim.lr": 0.2 * 2048 / 256,
        "optim.lr_plain": 0.0048 * 2048 / 256, "optim.weight_decay": 1e-6,
        "optim.warmup_epochs": 10, "optim.lr_end": 0.2 * 2048 / 256 * 0.001,
    } | TWO_VIEWS_OF_BYOL, conv=True),
    Row("swav", "code: swav, main_swav.py, 06b1b7c, 800 epochs", {
        "prototypes": 3000, "hidden": 2048, "projection": 128, "temperature": 0.1,
        "epsilon": 0.05, "iterations": 3, "freeze_prototypes": 313, "queue": 0, "epochs": 800,
    } | MULTI_CROP_OF_SWAV | LARC_OF_SWAV, conv=True),
    Row("swav", "code: swav, README.md, batch 256", {
        "queue": 3840, "queue_from_epoch": 15, "freeze_prototypes": 5005,
    }, conv=True, batch_size=256),
    Row("deepclusterv2", "code: swav, main_deepclusterv2.py, 06b1b7c, 800 epochs", {
        "clusters": 3000, "heads": 3, "iterations": 10, "temperature": 0.1, "epochs": 800,
    } | MULTI_CROP_OF_SWAV | LARC_OF_SWAV, conv=True),
    Row("clip", "code: CLIP, d05afc4, model.py; open_clip, 89fb801", {
        "vocabulary": 49408, "context": 77, "projection": 512, "text_dim": 512,
        "text_depth": 12, "text_heads": 8, "quick_gelu": True, "temperature": 0.07,
        "scale": (0.9, 1.0), "epochs": 32, "optim.lr": 5e-4, "optim.beta2": 0.98,
        "optim.eps": 1e-6, "optim.weight_decay": 0.2,
    }, images=400_000_000),
    Row("siglip", "paper: arXiv 2303.15343", {
        "context": 64, "vocabulary": 32000, "factor": 10.0, "bias": -10.0,
    }, images=400_000_000),
)  # fmt: skip


def value_of(recipe, name):
    """`optim.lr`, `batch_size`, `epochs`, or an option's name."""
    if name in ("batch_size", "epochs"):
        return getattr(recipe, name)
    where, _, field = name.rpartition(".")
    return getattr(recipe.optim if where == "optim" else recipe.options, field)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.source}")
def test_paper_recipe_has_the_numbers_of_its_source(row):
    context = RecipeContext(
        image_size=row.image_size, images=row.images, patch_size=row.patch_size, conv=row.conv,
        batch_size=row.batch_size,
    )  # fmt: skip
    found = recipes.paper(methods.load(row.method), context)
    for name, number in row.numbers.items():
        number = pytest.approx(number) if isinstance(number, float) else number
        assert value_of(found, name) == number, name

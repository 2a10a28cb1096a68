"""The papers' numbers, each group with the place it was read in.

"code" names a file of the official repository at a commit, "paper" the paper itself. Names without
a prefix are the method's own options; `optim.` are the optimiser's; `VIEW.` the fields of a view.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from nolabel import methods, recipes
from nolabel.backbones import build
from nolabel.config import Request
from nolabel.engine.placeholder import Placeholder
from nolabel.engine.resolve import resolve
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.types import Clock

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
    recipe: str = "paper"


SAME_VIEWS = {"view.flip": 0.5, "view.jitter_p": 0.8, "view.count": 2}
TWO_VIEWS_OF_BYOL = {  # MoCo v3 and Barlow Twins take the same two
    "jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2, "blur": (1.0, 0.1), "solarise": (0.0, 0.2),
    "blur_sigma": (0.1, 2.0), **SAME_VIEWS,
}  # fmt: skip
MULTI_CROP_OF_SWAV = {
    "global_scale": (0.14, 1.0), "local_scale": (0.05, 0.14), "local_crops": 6, "local_size": 96,
    "jitter": (0.8, 0.8, 0.8, 0.2), "grey": 0.2, "blur": 0.5, "blur_sigma": (0.1, 2.0),
    "solarise": 0.0, "global.flip": 0.5, "global.jitter_p": 0.8, "global.count": 2,
    "local.flip": 0.5, "local.blur": (0.5,), "global.interpolation": "bilinear",
    "local.interpolation": "bilinear",
}  # fmt: skip
LARC_OF_SWAV = {
    "batch_size": 4096, "optim.name": "larc", "optim.lr": 4.8, "optim.lr_start": 0.3,
    "optim.lr_end": 0.0048, "optim.warmup_epochs": 10, "optim.weight_decay": 1e-6,
    "optim.decay_all": True, "optim.beta1": 0.9, "optim.clip": None,
}  # fmt: skip
COLOURS_OF_DINO = {
    "jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2, "blur": (1.0, 0.1), "local_blur": 0.5,
    "solarise": (0.0, 0.2), "blur_sigma": (0.1, 2.0), "global.flip": 0.5, "global.jitter_p": 0.8,
    "global.count": 2, "global.interpolation": "bicubic", "local.flip": 0.5, "local.jitter_p": 0.8,
    "local.blur": (0.5,), "local.solarise": (0.0,), "local.interpolation": "bicubic",
}  # fmt: skip
ADAMW = {"optim.name": "adamw", "optim.beta1": 0.9, "optim.beta2": 0.999, "optim.decay_all": False}
LARS = {"optim.name": "lars", "optim.beta1": 0.9, "optim.decay_all": False, "optim.clip": None}
SGD = {"optim.name": "sgd", "optim.beta1": 0.9, "optim.decay_all": True, "optim.clip": None}
COSINE_TO_0 = {"optim.lr_start": 0.0, "optim.lr_end": 0.0, "optim.weight_decay_end": None}
ADAMW_OF_DINO = ADAMW | {
    "optim.warmup_epochs": 10, "optim.lr_start": 0.0, "optim.lr_end": 1e-6,
    "optim.weight_decay": 0.04, "optim.weight_decay_end": 0.4, "optim.clip": 3.0,
    "optim.clip_by": "tensor",
}  # fmt: skip
HEAD_OF_DINO = {"hidden": 2048, "bottleneck": 256, "head_batch_norm": False}
CROP_AND_FLIP = {
    "image.count": 1, "image.flip": 0.5, "image.grey": 0.0, "image.blur": (0.0,),
    "image.interpolation": "bicubic",
}  # fmt: skip

ROWS = (
    Row("autoencoder", "paper: Science 313, figure 3, codes of 30 numbers", {"code": 30}),
    Row("dino", "code: main_dino.py, 7c446df", {
        "prototypes": 65536, "norm_last_layer": True, "student_temperature": 0.1,
        "teacher_temperature": 0.04, "warmup_teacher_temperature": 0.04,
        "warmup_teacher_temperature_epochs": 0, "teacher_momentum": 0.996,
        "centre_momentum": 0.9, "freeze_last_layer": 1, "drop_path": 0.1,
        "global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4), "local_crops": 8,
        "local_size": 96,
    } | HEAD_OF_DINO | COLOURS_OF_DINO | ADAMW_OF_DINO),
    Row("dino", "code: main_dino.py, rate 5e-4 for each 256 images", {"optim.lr": 5e-4},
        batch_size=256),
    Row("dino", "code: README.md, the vanilla run of 100 epochs", {
        "batch_size": 1024, "epochs": 100, "optim.lr": 5e-4 * 1024 / 256,
    }),
    Row("dino", "code: README.md, ResNet-50 on 8 GPUs of 64 images, 100 epochs", {
        "batch_size": 512, "epochs": 100, "optim.name": "sgd", "optim.lr": 0.03 * 512 / 256,
        "optim.beta1": 0.9, "optim.weight_decay": 1e-4, "optim.weight_decay_end": None,
        "optim.warmup_epochs": 10, "optim.lr_end": 1e-6, "optim.clip": 3.0,
        "optim.clip_by": "tensor", "optim.decay_all": False, "drop_path": 0.0,
        "global_scale": (0.14, 1.0), "local_scale": (0.05, 0.14), "local_crops": 8,
        "teacher_momentum": 0.996, "teacher_temperature": 0.04,
    } | HEAD_OF_DINO | COLOURS_OF_DINO, conv=True),
    Row("ibot", "code: main_ibot.py, loader.py, models/head.py, da316d8; README.md, ViT-S/16", {
        "prototypes": 8192, "shared_head": True, "norm_last_layer": False, "class_weight": 1.0,
        "patch_weight": 1.0, "teacher_temperature": 0.07, "patch_temperature": 0.07,
        "warmup_teacher_temperature": 0.04, "warmup_teacher_temperature_epochs": 30,
        "student_temperature": 0.1, "centre_momentum": 0.9, "teacher_momentum": 0.996,
        "masked": 0.5, "mask_ratio": (0.1, 0.5), "mask_shape": "block", "freeze_last_layer": 1,
        "drop_path": 0.1, "global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25),
        "local_crops": 10, "local_size": 96, "batch_size": 1024, "epochs": 800,
        "optim.lr": 5e-4 * 1024 / 256,
    } | HEAD_OF_DINO | COLOURS_OF_DINO | ADAMW_OF_DINO),
    Row("dinov2", "code: configs/train/vitl14.yaml, ssl_default_config.yaml, b8931f7; README.md: "
        "96 GPUs of 32 images", {
        "prototypes": 131072, "patch_prototypes": 131072, "shared_head": False,
        "bottleneck": 384, "patch_bottleneck": 256, "hidden": 2048, "centring": "sinkhorn",
        "patch_weight": 1.0, "koleo": 0.1, "masked": 0.5, "mask_ratio": (0.1, 0.5),
        "student_temperature": 0.1, "teacher_temperature": 0.07,
        "warmup_teacher_temperature": 0.04, "teacher_momentum": 0.994, "drop_path": 0.4,
        "layer_scale": 1e-5, "swiglu": True, "registers": 0, "global_scale": (0.32, 1.0),
        "local_scale": (0.05, 0.32), "local_crops": 8, "local_size": 98, "batch_size": 3072,
        "steps": 500 * 1250, "optim.lr": 2e-4 * 3**0.5, "optim.lr_start": 0.0,
        "optim.lr_end": 1e-6, "optim.weight_decay": 0.04, "optim.weight_decay_end": 0.2,
        "optim.lr_patch": 0.2, "optim.layer_decay": 1.0, "optim.clip": 3.0,
        "optim.clip_by": "module",
    } | COLOURS_OF_DINO | ADAMW, patch_size=14, images=142_000_000),
    Row("dinov2", "code: configs/train/vitl16_short.yaml, ssl_default_config.yaml, b8931f7", {
        "prototypes": 65536, "shared_head": True, "bottleneck": 256, "centring": "centre",
        "koleo": 0.1, "teacher_momentum": 0.992, "drop_path": 0.3, "layer_scale": 1e-5,
        "swiglu": False, "local_size": 96, "batch_size": 2048, "steps": 100 * 1250,
        "optim.lr": 4e-3 * 2**0.5, "optim.weight_decay": 0.04, "optim.weight_decay_end": 0.4,
        "optim.layer_decay": 0.9, "optim.lr_patch": 0.2, "optim.clip": 3.0,
    } | COLOURS_OF_DINO | ADAMW, recipe="paper-short"),
    Row("mae", "code: models_mae.py, main_pretrain.py, efb2a80; PRETRAIN.md", {
        "mask_ratio": 0.75, "norm_pix": True, "decoder_dim": 512, "decoder_depth": 8,
        "decoder_heads": 16, "scale": (0.2, 1.0), "batch_size": 4096, "epochs": 800,
        "optim.lr": 1.5e-4 * 4096 / 256, "optim.weight_decay": 0.05,
        "optim.warmup_epochs": 40, "optim.clip": None, "optim.layer_decay": 1.0,
    } | CROP_AND_FLIP | COSINE_TO_0 | ADAMW | {"optim.beta2": 0.95}),
    Row("simmim", "code: configs/swin_base__100ep, models/simmim.py, d3e29bc", {
        "mask_ratio": 0.6, "unit": 32, "scale": (0.67, 1.0), "batch_size": 2048, "epochs": 100,
        "optim.lr": 2e-4 * 2048 / 512, "optim.lr_start": 1e-6 * 2048 / 512,
        "optim.lr_end": 1e-5 * 2048 / 512, "optim.warmup_epochs": 10,
        "optim.weight_decay": 0.05, "optim.weight_decay_end": None, "optim.clip": 5.0,
    } | CROP_AND_FLIP | ADAMW, image_size=192, patch_size=32),
    Row("vqvae", "paper: 1711.00937, section 4.1 and appendix A.1", {
        "codes": 512, "code_dim": 64, "commitment": 0.25, "decay": 0.99, "batch_size": 128,
        "steps": 250_000, "optim.name": "adamw", "optim.lr": 2e-4, "optim.lr_end": 2e-4,
        "optim.warmup_epochs": 0, "optim.weight_decay": 0.0,
    }),
    Row("dvae", "paper: 2102.12092, appendix A.2", {
        "codes": 8192, "first_temperature": 1.0, "temperature": 1 / 16, "anneal": 150 / 3000,
        "kl_weight": 6.6, "warm": pytest.approx(5 / 3000, abs=1e-4),
        "likelihood": "logit-laplace", "batch_size": 512, "steps": 3_000_000, "optim.lr": 1e-4,
        "optim.lr_end": 1.25e-6, "optim.weight_decay": 1e-4, "optim.beta1": 0.9,
        "optim.beta2": 0.999, "optim.eps": 1e-8,
    }, images=250_000_000),
    Row("beit", "code: unilm/beit, 768a3c8, get_started_for_image_classification.md, 800 epochs", {
        "mask_ratio": pytest.approx(75 / 196, abs=1e-3), "smallest_block": 16,
        "layer_scale": 0.1, "drop_path": 0.1, "scale": (0.08, 1.0), "jitter": 0.4,
        "image.jitter": (0.4, 0.4, 0.4, 0.0), "image.jitter_p": 1.0, "batch_size": 2048,
        "epochs": 800, "optim.lr": 1.5e-3, "optim.weight_decay": 0.05, "optim.clip": 3.0,
        "optim.lr_end": 1e-5, "optim.warmup_epochs": 10, "optim.eps": 1e-8,
    } | CROP_AND_FLIP | ADAMW),
    Row("eva", "code: EVA-01/eva/README.md, 5623d08, merged-30M", {
        "mask_ratio": pytest.approx(105 / 256, abs=1e-3), "drop_path": 0.1,
        "scale": (0.2, 1.0), "batch_size": 4096, "epochs": 150, "optim.lr": 1e-3,
        "optim.eps": 1e-6, "optim.weight_decay": 0.05, "optim.warmup_epochs": 2,
        "optim.lr_end": 1e-5, "optim.clip": 3.0, "optim.clip_by": "global",
        "image.jitter": (0.0, 0.0, 0.0, 0.0),
    } | CROP_AND_FLIP | ADAMW | {"optim.beta2": 0.98}, patch_size=14),
    Row("triplet", "paper: 1503.03832, margin 0.2, embedding of 128, semi-hard negatives", {
        "margin": 0.2, "projection": 128, "mining": "semi-hard",
    }),
    Row("simclr", "code: google-research/simclr, run.py, data_util.py, README.md", {
        "temperature": 0.1, "hidden": 2048, "projection": 128, "scale": (0.08, 1.0),
        "strength": 1.0, "hue": 0.2, "view.jitter": (0.8, 0.8, 0.8, 0.2), "grey": 0.2,
        "blur": 0.5, "blur_sigma": (0.1, 2.0), "solarise": 0.0, "view.interpolation": "bicubic",
        "batch_size": 4096, "epochs": 100, "optim.lr": 0.3 * 4096 / 256,
        "optim.weight_decay": 1e-6, "optim.warmup_epochs": 10,
    } | SAME_VIEWS | LARS | COSINE_TO_0, conv=True),
    Row("mocov2", "code: moco, main_moco.py, moco/builder.py, README.md", {
        "queue": 65536, "temperature": 0.2, "key_momentum": 0.999, "hidden": 2048,
        "projection": 128, "scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2,
        "blur": 0.5, "solarise": 0.0, "blur_sigma": (0.1, 2.0), "view.interpolation": "bilinear",
        "batch_size": 256, "epochs": 200, "optim.lr": 0.03, "optim.weight_decay": 1e-4,
        "optim.warmup_epochs": 0,
    } | SAME_VIEWS | SGD | COSINE_TO_0, conv=True),
    Row("mocov3", "code: moco-v3, c349e6e, CONFIG.md, main_moco.py, ViT", {
        "temperature": 0.2, "key_momentum": 0.99, "hidden": 4096, "projection": 256,
        "freeze_patch": True, "scale": (0.08, 1.0), "view.interpolation": "bilinear",
        "batch_size": 4096, "epochs": 300, "optim.lr": 1.5e-4 * 4096 / 256,
        "optim.weight_decay": 0.1, "optim.warmup_epochs": 40, "optim.clip": None,
    } | TWO_VIEWS_OF_BYOL | ADAMW | COSINE_TO_0 | {"optim.decay_all": True}),
    Row("mocov3", "code: moco-v3, CONFIG.md and main_moco.py, ResNet-50, 300 epochs", {
        "temperature": 1.0, "key_momentum": 0.99, "hidden": 4096, "projection": 256,
        "scale": (0.2, 1.0), "view.interpolation": "bilinear", "batch_size": 4096, "epochs": 300,
        "optim.lr": 0.3 * 4096 / 256, "optim.warmup_epochs": 10, "optim.weight_decay": 1e-6,
    } | TWO_VIEWS_OF_BYOL | LARS | COSINE_TO_0, conv=True),
    Row("byol", "code: deepmind-research/byol, configs/byol.py, 1000 epochs", {
        "hidden": 4096, "projection": 256, "projection_norm": False, "target_momentum": 0.996,
        "scale": (0.08, 1.0), "view.interpolation": "bicubic", "batch_size": 4096,
        "epochs": 1000, "optim.lr": 0.2 * 4096 / 256, "optim.weight_decay": 1.5e-6,
        "optim.warmup_epochs": 10,
    } | TWO_VIEWS_OF_BYOL | LARS | COSINE_TO_0, conv=True),
    Row("barlow", "code: barlowtwins, main.py", {
        "weight": 0.0051, "hidden": 8192, "projection": 8192, "scale": (0.08, 1.0),
        "view.interpolation": "bicubic", "batch_size": 2048, "epochs": 1000,
        "optim.lr": 0.2 * 2048 / 256, "optim.lr_plain": 0.0048 * 2048 / 256,
        "optim.weight_decay": 1e-6, "optim.warmup_epochs": 10,
        "optim.lr_end": 0.2 * 2048 / 256 * 0.001,
    } | TWO_VIEWS_OF_BYOL | LARS, conv=True),
    Row("swav", "code: swav, main_swav.py, scripts/swav_800ep_pretrain.sh, 06b1b7c", {
        "prototypes": 3000, "hidden": 2048, "projection": 128, "temperature": 0.1,
        "epsilon": 0.05, "iterations": 3, "freeze_prototypes": 313, "queue": 0, "epochs": 800,
    } | MULTI_CROP_OF_SWAV | LARC_OF_SWAV, conv=True),
    Row("swav", "code: swav, scripts/swav_400ep_bs256_pretrain.sh, 06b1b7c", {
        "queue": 3840, "queue_from_epoch": 15, "freeze_prototypes": 5005, "epochs": 400,
        "optim.name": "larc", "optim.lr": 0.6, "optim.lr_end": 0.0006, "optim.warmup_epochs": 0,
        "optim.weight_decay": 1e-6, "optim.decay_all": True,
    } | MULTI_CROP_OF_SWAV, conv=True, batch_size=256),
    Row("deepclusterv2", "code: swav, main_deepclusterv2.py, scripts/deepclusterv2_800ep_pretrain"
        ".sh, 06b1b7c", {
        "images": IMAGENET, "clusters": 3000, "heads": 3, "iterations": 10, "hidden": 2048,
        "projection": 128, "temperature": 0.1, "epochs": 800,
    } | MULTI_CROP_OF_SWAV | LARC_OF_SWAV, conv=True),
    Row("obow", "code: valeoai/obow, config/ImageNetFull/ResNet50_OBoW_full.yaml, 45af149", {
        "words": 8192, "levels": 2, "temperature": 1 / 15, "kappa": 8, "teacher_momentum": 0.99,
        "global_scale": (0.08, 0.6), "global_size": 160, "local_crops": 5, "local_size": 96,
        "teacher_grey": 0.0, "jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2, "blur": 0.5,
        "blur_sigma": (0.1, 2.0), "solarise": 0.0, "large.count": 2, "large.flip": 0.5,
        "large.jitter_p": 0.8, "large.interpolation": "bilinear", "small.blur": (0.0,),
        "teacher.flip": 0.5, "batch_size": 256, "epochs": 200, "optim.lr": 0.03,
        "optim.lr_end": 3e-5, "optim.warmup_epochs": 10, "optim.weight_decay": 1e-4,
    } | SGD, conv=True),
    Row("clip", "code: CLIP, d05afc4, model.py; paper: 2103.00020, tables 18 and 19", {
        "vocabulary": 49408, "context": 77, "projection": 512, "text_dim": 512,
        "text_depth": 12, "text_heads": 8, "quick_gelu": True, "temperature": 0.07,
        "scale": (0.9, 1.0), "image.flip": 0.0, "image.interpolation": "bicubic",
        "batch_size": 32768, "epochs": 32, "optim.lr": 5e-4, "optim.eps": 1e-6,
        "optim.weight_decay": 0.2, "optim.warmup_epochs": 2000 * 32768 / 400_000_000,
        "optim.clip": None,
    } | COSINE_TO_0 | ADAMW | {"optim.beta2": 0.98}, images=400_000_000),
    Row("siglip", "paper: 2303.15343, sections 3 and 4; code: big_vision, 0127fb6, optax.py", {
        "context": 64, "vocabulary": 32000, "projection": 768, "text_dim": 768,
        "text_depth": 12, "text_heads": 12, "factor": 10.0, "bias": -10.0, "batch_size": 32768,
        "optim.lr": 1e-3, "optim.weight_decay": 1e-4 / 1e-3, "optim.clip": 1.0,
        "optim.clip_by": "global", "image.flip": 0.0,
    } | COSINE_TO_0 | ADAMW | {"optim.beta2": 0.95}, images=400_000_000),
    Row("distill", "code: SEED, 81ff933, tools/opts.py, main.py; paper: 2101.04731, teacher's "
        "temperature", {
        "soft": 1.0, "features": 0.0, "anchors": 65536, "student_temperature": 0.2,
        "teacher_temperature": 0.01, "scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1),
        "grey": 0.2, "blur": 0.5, "blur_sigma": (0.1, 2.0), "view.flip": 0.5,
        "view.jitter_p": 0.8, "view.interpolation": "bilinear", "batch_size": 256,
        "epochs": 200, "optim.lr": 0.03, "optim.weight_decay": 1e-4,
    } | SGD | COSINE_TO_0, conv=True),
)  # fmt: skip


def context_of(row):
    return RecipeContext(
        image_size=row.image_size, images=row.images, patch_size=row.patch_size, conv=row.conv,
        batch_size=row.batch_size,
    )  # fmt: skip


def value_of(recipe, views, name):
    """`optim.lr`, `global.flip`, `batch_size`, `steps`, `epochs`, or an option's name."""
    if name in ("batch_size", "epochs", "steps"):
        return getattr(recipe, name)
    where, _, field = name.rpartition(".")
    named = {"optim": recipe.optim, "": recipe.options, **views}
    return getattr(named[where], field)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.source}")
def test_paper_recipe_has_the_numbers_of_its_source(row):
    kind = methods.load(row.method)
    found = recipes.recipe(kind, row.recipe, context_of(row))
    views = {v.name: v for v in kind.views(found.options, row.image_size).views}
    for name, number in row.numbers.items():
        number = pytest.approx(number) if isinstance(number, float) else number
        assert value_of(found, views, name) == number, name


def test_every_method_has_a_row_and_the_papers_with_both_a_vit_and_a_resnet():
    assert {row.method for row in ROWS} == set(methods.METHODS)
    for both in ("dino", "mocov3"):
        assert {row.conv for row in ROWS if row.method == both} == {False, True}


@pytest.mark.parametrize("images", [IMAGENET, 142_000_000])
@pytest.mark.parametrize(
    ("name", "batch", "steps", "warmup"),
    [("paper", 3072, 625_000, 100_000), ("paper-short", 2048, 125_000, 12_500)],
)
def test_an_epoch_of_dinov2_is_1250_steps_whatever_the_data(name, batch, steps, warmup, images):
    kind = methods.load("dinov2")
    data = Placeholder(images, 224)
    asked = {"data": data.name, "backbone": "vit_large_patch14_dinov2", "recipe": name}
    run = resolve(Request.of("dinov2", **asked), source=data).run
    assert (run.settings.batch_size, run.settings.steps) == (batch, steps)
    per_epoch = images // batch
    assert run.steps_per_epoch == per_epoch
    assert round(run.optim.warmup_epochs * per_epoch) == warmup
    method = kind.__new__(kind)  # the schedules read the options alone
    method.options = run.options

    def temperature(step):
        return kind.teacher_temperature(method, Clock(step, steps, per_epoch))

    assert temperature(0) == 0.04 and temperature(37_498) < 0.07 and temperature(37_499) == 0.07
    assert run.options.freeze_last_layer * per_epoch == pytest.approx(1250)


def test_an_unknown_variant_of_a_papers_recipe_is_refused():
    context = RecipeContext(image_size=224, images=1000)
    with pytest.raises(UsageError, match="'paper-short'"):
        recipes.recipe(methods.load("dinov2"), "paper-shrt", context)
    with pytest.raises(UsageError, match="Unknown recipe 'paper-short'"):
        recipes.recipe(methods.load("dino"), "paper-short", context)


@pytest.mark.parametrize("net", ["resnet18", "resnet50"])
def test_the_last_norms_of_blocks_start_as_in_each_papers_code(net):
    """torchvision's 1 (src/resnet50.py of swav:139 and others), or 0 (Goyal et al. 2017)."""
    at_one = ("swav", "deepclusterv2", "mocov2", "obow", "dino")
    for name in (*at_one, "mocov3", "barlow", "byol", "simclr"):
        backbone = build(net, image_size=32)
        methods.load(name).init(backbone)
        last = "bn2" if net == "resnet18" else "bn3"
        norms = [p for n, p in backbone.named_parameters() if n.endswith(f"{last}.weight")]
        assert len(norms) == (8 if net == "resnet18" else 16)
        assert all((p == (1.0 if name in at_one else 0.0)).all() for p in norms), name

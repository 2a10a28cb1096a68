"""Which parameters decay, and their share of the rate: the official lists, name by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from nolabel import methods, recipes
from nolabel.backbones.depth import layer_numbers, skips_weight_decay_in_finetuning
from nolabel.engine.optimiser import decays
from nolabel.methods.base import RecipeContext
from nolabel.testing import TINY, build_small

MODELS = json.loads((Path(__file__).parents[1] / "oracles" / "param_groups.json").read_text())[
    "models"
]
FINETUNED = [name for name in MODELS if "pretrain" not in name]
# `--disable_weight_decay_on_rel_pos_bias`, which BEiT's own commands do not use.
FINETUNED.remove("beit_finetune_undecayed_tables")


def ours(official: str) -> str:
    """Our name of an official parameter: the network is `net`, heads are beside it."""
    name = official.removeprefix("encoder.")
    if name.startswith(("head", "decoder", "fc_norm")):
        return name
    # A stage's downsampling is its end there, and the next one's start in timm.
    name = re.sub(
        r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name
    )
    return name if name == "mask_token" else f"backbone.net.{name}"


@pytest.mark.parametrize("model", FINETUNED)
def test_finetuning_groups_are_the_official_ones(model):
    settings, official = MODELS[model]["settings"], MODELS[model]["parameters"]
    layers, last = layer_numbers(ours(name) for name in official)
    for name, group in official.items():
        p = torch.zeros(group["shape"])
        share = settings["layer_decay"] ** (last - layers[ours(name)])
        assert share == pytest.approx(group["lr_scale"]), name
        undecayed = skips_weight_decay_in_finetuning(ours(name), p)
        assert undecayed is (group["weight_decay"] == 0.0), name


def paper_optim(name: str):
    context = RecipeContext(image_size=224, images=1_281_167, patch_size=16)
    return recipes.paper(methods.load(name), context).optim


# A Swin's tables decay by a slip of the official pre-training; a ViT's mask token decays there.
DIFFERENT = {"simmim_pretrain_swin": "_table", "simmim_pretrain_vit": ("_table", "mask_token")}


@pytest.mark.parametrize("model", DIFFERENT)
def test_simmims_groups_are_the_official_ones_but_for_what_its_page_says(model):
    for name, group in MODELS[model]["parameters"].items():
        shape = [group["shape"][-1]] if name.endswith("mask_token") else group["shape"]
        ours_decays = decays(ours(name), torch.zeros(shape), paper_optim("simmim"))
        same = ours_decays is (group["weight_decay"] > 0)
        assert same is not name.endswith(DIFFERENT[model]), name


# Of tensors of several dimensions, and of mask tokens: what the official code spares.
SPARED = {
    "mae": set(), "dino": set(), "ibot": set(), "dinov2": set(),  # "bias", 1-D tensors
    "mocov3": set(),
    "beit": {"cls_token", "pos_embed"}, "eva": {"cls_token", "pos_embed"},  # no_weight_decay()
    "simmim": {"cls_token", "pos_embed", "mask_token"},
}  # fmt: skip


@pytest.mark.parametrize("name", SPARED)
def test_pretraining_spares_what_the_official_code_spares(name):
    kind = methods.load(name)
    method, optim = build_small(kind, kind.Options(**TINY[name]), "vit_pico"), paper_optim(name)
    spared = {
        n.rpartition(".")[2]
        for n, p in method.named_parameters()
        if p.requires_grad and (p.ndim > 1 or "mask_token" in n) and not decays(n, p, optim)
    }
    assert spared == SPARED[name]

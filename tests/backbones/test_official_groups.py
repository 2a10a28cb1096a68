"""Which parameters decay, and their share of the rate: the official lists, name by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from nolabel.backbones.depth import layer_numbers, skips_weight_decay_in_finetuning

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

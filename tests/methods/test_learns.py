"""Methods learn: after a short training on built-in data they beat trivial baselines."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import nolabel as nl
from judging import assert_healthy, judging_creatures
from nolabel.data.open import open_source
from nolabel.engine.build import load_method
from nolabel.types import Batch, Clock

SHORT = {"precision": "fp32", "quiet": True, "checkpoint_every": 10_000, "batch_size": 128}


@pytest.mark.long
def test_simclr_beats_its_random_initialisation_and_distill_and_eva_learn_from_it(tmp_path, gain):
    """One test for three methods: the teacher need not be trained twice."""
    judge = judging_creatures(32, known=2000)
    given = {"data": "creatures", "backbone": "resnet_nano", **SHORT}
    run = nl.pretrain("simclr", out=tmp_path / "simclr", steps=60, **given)
    assert_healthy(run.folder)
    found = gain(str(run.folder), f"random:{run.folder}", **judge)
    assert found["low"] > 0, found

    given["teacher"] = str(run.folder)
    student = nl.pretrain("distill", out=tmp_path / "distill", steps=120, **given)
    found = gain(str(student.folder), f"random:{student.folder}", **judge)
    assert found["low"] > 0, found

    given |= {"backbone": "vit_pico", "batch_size": 64}
    patches = nl.pretrain("eva", out=tmp_path / "eva", steps=70, **given)
    source = open_source("creatures:test", image_size=32)
    method, _ = load_method(str(patches.folder))
    method.eval()
    x = patches.encoder.prepare([source.read(i).image for i in range(256)])
    known = method.targets(x)  # [B, P, D], unit
    guess = F.normalize(known.mean((0, 1)), dim=-1)
    with torch.no_grad():
        agreement = -float(method.step(Batch(views={"image": x[None]}), Clock(0, 10, 1)).loss)
    assert agreement > float((known @ guess).mean()) + 0.05, agreement


@pytest.mark.long
def test_mae_predicts_removed_patches_far_better_than_their_mean(tmp_path):
    """Targets have unit variance, so the best constant guess costs 1."""
    run = nl.pretrain(
        "mae", data="creatures", out=tmp_path / "run", backbone="vit_pico", steps=55,
        **{**SHORT, "image_size": 24, "warmup_epochs": 0.1},
    )  # fmt: skip
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line)["loss"] for line in lines[-5:]]
    assert sum(last) / 5 < 0.6, last

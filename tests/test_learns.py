"""Methods learn: after a short training on built-in data they beat what knows nothing."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import nolabel as nl
from nolabel.data.sources import open_source
from nolabel.engine.build import load_method
from nolabel.errors import NolabelError
from nolabel.types import Batch, Clock

SHORT = {"precision": "fp32", "quiet": True, "checkpoint_every": 10_000, "batch_size": 128}


def test_simclr_beats_its_random_initialisation_and_distill_and_eva_learn_from_it(tmp_path):
    """One test for three methods: the teacher need not be trained twice."""

    def top1(encoder):
        return nl.evaluate("knn", encoder, train="creatures:train", test="creatures:test").best

    given = {"data": "creatures", "backbone": "resnet_nano", **SHORT}
    run = nl.pretrain("simclr", out=tmp_path / "simclr", steps=100, **given)
    trained, random = top1(str(run.folder)), top1(f"random:{run.folder}")
    assert trained["low"] > random["high"], (trained, random)

    given["teacher"] = str(run.folder)
    student = nl.pretrain("distill", out=tmp_path / "distill", steps=220, **given)
    trained, random = top1(str(student.folder)), top1(f"random:{student.folder}")
    assert trained["low"] > random["high"], (trained, random)

    given |= {"backbone": "vit_pico", "batch_size": 64}
    patches = nl.pretrain("eva", out=tmp_path / "eva", steps=200, **given)
    source = open_source("creatures:test", image_size=32)
    method, _ = load_method(str(patches.folder))
    method.eval()
    x = patches.encoder.prepare([source.read(i).image for i in range(256)])
    known = method.targets(x)  # [B, P, D], unit
    guess = F.normalize(known.mean((0, 1)), dim=-1)
    with torch.no_grad():
        agreement = -float(method.step(Batch(views={"image": x[None]}), Clock(0, 10, 1)).loss)
    assert agreement > float((known @ guess).mean()) + 0.05, agreement


def test_mae_predicts_removed_patches_far_better_than_their_mean(tmp_path):
    """Targets have unit variance, so the best constant guess costs 1."""
    run = nl.pretrain(
        "mae", data="creatures", out=tmp_path / "run", backbone="vit_pico", steps=60, **SHORT
    )
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line)["loss"] for line in lines[-5:]]
    assert sum(last) / 5 < 0.6, last


def test_dino_beats_its_random_initialisation_by_k_nn(tmp_path):
    """On clothes: DINO needs more steps than a minute gives it on creatures."""
    try:
        run = nl.pretrain(
            "dino", data="fashion-mnist", out=tmp_path / "run", steps=900, precision="fp32",
            quiet=True,
        )  # fmt: skip
    except NolabelError as error:
        pytest.skip(f"Fashion-MNIST is not installed: {error}")

    def top1(encoder):
        return nl.evaluate("knn", encoder, train="fashion-mnist:test").best

    trained, random = top1(str(run.folder)), top1(f"random:{run.folder}")
    assert trained["low"] > random["high"], (trained, random)

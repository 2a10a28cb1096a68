"""Methods learn: after a short training on built-in data they beat what knows nothing."""

from __future__ import annotations

import json

import pytest

import nolabel as nl
from nolabel.errors import NolabelError

SHORT = {"precision": "fp32", "quiet": True, "checkpoint_every": 10_000, "batch_size": 128}


def test_simclr_beats_its_random_initialisation_by_k_nn(tmp_path):
    run = nl.pretrain(
        "simclr", data="creatures", out=tmp_path / "run", backbone="resnet_nano", steps=60, **SHORT
    )

    def top1(encoder):
        return nl.evaluate("knn", encoder, train="creatures:train", test="creatures:test")

    trained, random = top1(str(run.folder)).best, top1(f"random:{run.folder}").best
    assert trained["low"] > random["high"], (trained, random)


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

"""Methods learn: after a short training on built-in data they beat what knows nothing."""

from __future__ import annotations

import json

import nolabel as nl

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

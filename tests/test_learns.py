"""Every method learns: after a short training on built-in data it beats its random weights."""

from __future__ import annotations

import pytest

import nolabel as nl

CASES = {
    "simclr": {"backbone": "resnet_nano", "steps": 60, "batch_size": 128},
    "mae": {"backbone": "vit_pico", "steps": 150, "batch_size": 128},
}


@pytest.mark.parametrize("method", list(CASES))
def test_a_short_training_beats_the_random_initialisation(method, tmp_path):
    given = {"precision": "fp32", "quiet": True, "checkpoint_every": 10_000, **CASES[method]}
    run = nl.pretrain(method, data="creatures", out=tmp_path / "run", **given)

    def top1(encoder):
        return nl.evaluate("knn", encoder, train="creatures:train", test="creatures:test")

    trained, random = top1(str(run.folder)).best, top1(f"random:{run.folder}").best
    assert trained["low"] > random["high"], (trained, random)

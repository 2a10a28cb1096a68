"""Tokenizers say more than the mean colour, and BEiT predicts their tokens where it cannot see."""

from __future__ import annotations

import json

import pytest
import torch

import nolabel as nl
from nolabel.data.open import open_source
from nolabel.engine.build import load_method

SHORT = {"data": "creatures", "precision": "fp32", "quiet": True, "checkpoint_every": 100_000}


def last_lines(run, n=10):
    """Means of the last n lines of metrics.jsonl."""
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()][-n:]
    return {k: sum(x[k] for x in lines) / len(lines) for k in lines[-1] if lines[-1][k] is not None}


@pytest.mark.long
def test_tokens_of_a_short_dvae_say_more_than_the_mean_colour(tmp_path):
    run = nl.pretrain("dvae", out=tmp_path / "run", backbone="vit_pico", steps=80, batch_size=64,
                      **SHORT)  # fmt: skip
    found = last_lines(run)
    assert found["error"] < 0.75 * found["error_mean_colour"], found
    assert found["codes_used"] > 16, found


@pytest.mark.long
def test_tokens_of_a_short_vqvae_say_far_more_than_the_mean_colour_and_beit_predicts_them(tmp_path):
    """One test for two methods: the tokenizer need not be trained twice."""
    given = {**SHORT, "backbone": "vit_pico", "patch_size": 4, "batch_size": 64}
    teacher = nl.pretrain("vqvae", out=tmp_path / "teacher", steps=120, decoder_dim=64,
                          decoder_depth=1, **given)  # fmt: skip
    found = last_lines(teacher)
    assert found["error"] < 0.5 * found["error_mean_colour"], found
    assert found["codes_used"] > 150, found
    assert found["perplexity"] > 75, found

    given["teacher"] = str(teacher.folder)
    run = nl.pretrain("beit", out=tmp_path / "run", steps=70, **given)
    source = open_source("creatures:test", image_size=32)
    method, _ = load_method(str(run.folder))
    ids = method.targets(run.encoder.prepare([source.read(i).image for i in range(500)]))
    commonest = float(torch.bincount(ids.flatten()).max() / ids.numel())
    assert last_lines(run)["token_accuracy"] > 2 * commonest, commonest

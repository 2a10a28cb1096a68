"""`--keep best`: the encoder of the best moment is the run's."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from nolabel.engine import train
from nolabel.engine.monitor import best as module
from nolabel.engine.run_folder import BEST


def lines_of(run):
    return [json.loads(text) for text in (run.folder / "metrics.jsonl").open()]


@pytest.fixture
def curve(monkeypatch):
    """Self-retrieval takes these values, one after the other."""
    values = [0.2, 0.5, 0.3, 0.4]
    monkeypatch.setattr(module, "self_retrieval", lambda encoder, source: values.pop(0))
    return values


def test_the_encoder_of_the_best_moment_is_kept(tiny_run, curve, capsys):
    run = tiny_run(steps=4, keep="best", probe_every=1, log_every=1)
    assert [line["self_retrieval"] for line in lines_of(run)] == [0.2, 0.5, 0.3, 0.4]
    best = load_file(run.folder / BEST / "encoder.safetensors")
    kept = load_file(run.folder / "encoder.safetensors")
    assert all(torch.equal(best[k], kept[k]) for k in best)
    last = tiny_run(out="last", steps=4, probe_every=1, log_every=1)
    other = load_file(last.folder / "encoder.safetensors")
    assert not all(torch.equal(other[k], kept[k]) for k in kept)


def test_a_resumed_run_remembers_the_best(tiny_run, curve):
    run = tiny_run(steps=2, keep="best", probe_every=1, log_every=1)
    train.resume(run.folder, quiet=True, extension=train.Extension(steps=2))
    assert [line["self_retrieval"] for line in lines_of(run)] == [0.2, 0.5, 0.3, 0.4]
    best = load_file(run.folder / BEST / "encoder.safetensors")
    kept = load_file(run.folder / "encoder.safetensors")
    assert all(torch.equal(best[k], kept[k]) for k in best)


def test_measuring_changes_nothing_of_the_training(tiny_run):
    a = tiny_run(out="a", steps=3, keep="best", probe_every=1, log_every=1)
    b = tiny_run(out="b", steps=3, log_every=1)
    assert [x["loss"] for x in lines_of(a)] == [x["loss"] for x in lines_of(b)]


def test_the_probe_decides_where_there_is_one(tiny_run, few_creatures):
    run = tiny_run(steps=2, keep="best", probe="creatures", probe_every=1, log_every=1)
    assert all("probe_knn" in x and "self_retrieval" not in x for x in lines_of(run))

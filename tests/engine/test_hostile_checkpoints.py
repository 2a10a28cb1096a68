"""A checkpoint with a right digest that no run wrote is skipped with a line, or is an error."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

from nolabel.engine import checkpoint
from nolabel.engine.checkpoint import restore, save_checkpoint
from nolabel.engine.length import FILE, read_changes
from nolabel.engine.monitor.metrics import MetricsLog
from nolabel.engine.saved_state import load_state
from nolabel.engine.unreadable import UnreadableFiles
from nolabel.errors import FileDamaged
from nolabel.nn.random_state import rng_state


def learner():
    """A small network and its optimiser, after a step."""
    torch.manual_seed(0)
    method = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimiser = torch.optim.AdamW(method.parameters(), fused=True)
    method(torch.ones(5, 3)).sum().backward()
    optimiser.step()
    return method, optimiser


def whole_state():
    method, optimiser = learner()
    parts = {"method": method.state_dict(), "optimiser": optimiser.state_dict(),
             "optimiser_kind": "AdamW"}  # fmt: skip
    return copy.deepcopy({"learner": parts, "rng": rng_state(), "guard": 0})


def put(*path):
    """Puts the last of the arguments where the others lead."""
    *keys, last, value = path

    def change(state):
        for key in keys:
            state = state[key]
        state[last] = value

    return change


def drop(*path):
    *keys, last = path

    def change(state):
        for key in keys:
            state = state[key]
        del state[last]

    return change


W, M, O = "0.weight", ("learner", "method"), ("learner", "optimiser")  # noqa: E741
DAMAGES = {
    "no learner": drop("learner"),
    "learner is a list": put("learner", [1]),
    "no method": drop(*M),
    "method is a tensor": put(*M, torch.ones(2)),
    "no weights": put(*M, {}),
    "weights are numbers": put(*M, W, 5),
    "weights have numbers as names": put(*M, {1: torch.ones(2)}),
    "a weight is missing": drop(*M, W),
    "a weight is unexpected": put(*M, "more", torch.ones(2)),
    "a weight has another shape": put(*M, W, torch.ones(2, 2)),
    "a weight is of whole numbers": put(*M, W, torch.ones(4, 3, dtype=torch.int64)),
    "a weight is sparse": put(*M, W, torch.ones(4, 3).to_sparse()),
    "a weight is huge by stride": put(*M, W, torch.ones(1).expand(10**12)),
    "no optimiser": drop(*O),
    "optimiser is a text": put(*O, "AdamW"),
    "no groups": drop(*O, "param_groups"),
    "groups are numbers": put(*O, "param_groups", [1]),
    "one group more": lambda s: s["learner"]["optimiser"]["param_groups"].append({"params": []}),
    "a group lacks parameters": drop(*O, "param_groups", 0, "params"),
    "parameters are texts": put(*O, "param_groups", 0, "params", ["a"]),
    "rates are texts": put(*O, "param_groups", 0, "betas", "x"),
    "moments are a list": put(*O, "state", []),
    "moments of one are a number": put(*O, "state", 0, 5),
    "a moment has another shape": put(*O, "state", 0, "exp_avg", torch.ones(7)),
    "a moment is missing": drop(*O, "state", 0, "exp_avg"),
    "a moment is a text": put(*O, "state", 0, "exp_avg", "x"),
    "another optimiser": put("learner", "optimiser_kind", "SGD"),
    "optimiser's kind is a list": put("learner", "optimiser_kind", [1]),
    "no random state": drop("rng"),
    "random state of zeros": put("rng", "cpu", torch.zeros(5056, dtype=torch.uint8)),
    "random state is short": put("rng", "cpu", torch.zeros(3, dtype=torch.uint8)),
    "random state is a text": put("rng", "cpu", "x"),
    "random state of GPUs is a number": put("rng", "cuda", 5),
    "no guard": drop("guard"),
    "guard is a text": put("guard", "many"),
    "guard is negative": put("guard", -1),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_no_damage_reaches_the_training(what, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_tensor_bytes", lambda state: 0)  # of odd tensors
    state = whole_state()
    DAMAGES[what](state)
    save_checkpoint(tmp_path, 1, whole_state())
    save_checkpoint(tmp_path, 2, state)
    loaded = load_state(tmp_path)
    if loaded.step == 1:  # skipped, and said
        assert "not that of a run" in loaded.notes[0] or "cannot be read" in loaded.notes[0]
        return
    with pytest.raises(FileDamaged):
        restore(*learner(), loaded.state["learner"])


def test_an_undamaged_state_is_restored_and_a_run_without_another_says_so(tmp_path):
    save_checkpoint(tmp_path, 1, whole_state())
    loaded = load_state(tmp_path)
    restore(*learner(), loaded.state["learner"])
    assert not loaded.notes
    save_checkpoint(tmp_path, 2, {"x": torch.ones(2)}, keep=1)
    with pytest.raises(FileDamaged, match="None of the 1 checkpoints.*it has no learner"):
        load_state(tmp_path)


def test_pipes_in_a_run_folder_make_nobody_wait(tmp_path):
    save_checkpoint(tmp_path, 1, whole_state())
    os.mkfifo(tmp_path / "checkpoints" / "step-00000002.ckpt")
    loaded = load_state(tmp_path)
    assert loaded.step == 1 and "is no file" in loaded.notes[0]
    for name in ("metrics.jsonl", "skipped.jsonl", FILE):
        os.mkfifo(tmp_path / name)
    with pytest.raises(FileDamaged, match="is no file"):
        MetricsLog(tmp_path / "metrics.jsonl")
    assert read_changes(tmp_path) == []
    UnreadableFiles(tmp_path / "skipped.jsonl", images=9, max_bad=0.5).add((("a", "bad"),))

"""A non-finite step is saved, and repeated exactly."""

from __future__ import annotations

import json
import math

import pytest
import torch

from nolabel.cli import main
from nolabel.engine.replay import CAPTURED, Replay, format_replay, replay
from nolabel.errors import GuardStop, UsageError
from nolabel.methods.mae import MAE


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_kept_step_is_repeated_exactly(accumulate, tiny_run, tmp_path, monkeypatch):
    """The same images, views, masks and weights give the same loss, without the injected error."""
    real, losses = MAE.step, []

    def broken(self, batch, clock):
        out = real(self, batch, clock)
        if clock.step == 2:
            losses.append(out.loss.item())
            return type(out)(out.loss * math.nan, out.logs, out.features)
        return out

    monkeypatch.setattr(MAE, "step", broken)
    tiny_run("mae", accumulate=accumulate)
    monkeypatch.undo()
    step, seen = replay(tmp_path / "run")
    assert step == 2
    assert seen.loss == torch.tensor(losses).mean().item()
    assert seen.finite and not (seen.views or seen.weights or seen.output or seen.gradient)
    assert "the step itself is not the cause" in format_replay(step, seen)


def test_a_rate_that_is_far_too_high_is_found_where_it_breaks(tiny_run, tmp_path, capsys):
    with pytest.raises(GuardStop):
        tiny_run("simclr", optimiser="sgd", lr=1e25, warmup_epochs=0)
    # The second step is the first non-finite one; the two after it are not saved.
    assert [p.name for p in (tmp_path / "run" / CAPTURED / "checkpoints").iterdir()] == [
        "step-00000001.ckpt"
    ]
    table = tmp_path / "seen.json"
    assert main(["replay", str(tmp_path / "run"), "--json", str(table)]) == 0
    told_ = capsys.readouterr().out
    assert "first output that is not finite: backbone." in told_ or "encoder." in told_
    assert "--optim.lr" in told_
    seen = json.loads(table.read_text())
    assert seen["step"] == 1 and seen["seen"]["loss"] is None
    assert seen["seen"]["gradients"] > 10


def test_where_nothing_was_kept_that_is_said(tiny_run, tmp_path):
    tiny_run()
    with pytest.raises(UsageError, match="holds no step that was not finite"):
        replay(tmp_path / "run")


def test_what_only_breaks_in_half_precision_is_told_apart():
    half = Replay("bf16", math.inf, [], [], "head.2", 3e38, "", 4)
    full = Replay("fp32", 2.0, [], [], "", 0.0, "", 0)
    assert "--precision fp32" in format_replay(7, half, full)
    assert "--precision fp32" not in format_replay(7, half, half)
    only = Replay("fp32", 2.0, [], [], "", 0.0, "head.0", 3)
    assert "first at head.0 in the backward pass" in format_replay(7, only)
    assert "the loss itself" in format_replay(7, Replay("fp32", math.nan, [], [], "", 0.0, "", 3))
    named = format_replay(
        7, Replay("fp32", math.nan, ["global"], ["head.weight"], "head", 1.0, "", 3)
    )
    assert "first head.weight" in named and "global" in named

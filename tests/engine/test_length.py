"""The promise of M minutes: the number of steps follows the time that steps really take."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nolabel.engine import length, train
from nolabel.engine.length import Change, Length, change_at, read_changes
from nolabel.errors import UsageError
from nolabel.nn.schedules import learning_rate
from nolabel.types import Clock


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(length, "time", clock)
    return clock


def run_of(tmp_path, steps: int) -> Any:
    return SimpleNamespace(folder=tmp_path, settings=SimpleNamespace(steps=steps))


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0], ids=["faster", "as predicted", "slower"])
def test_the_run_ends_in_time_whatever_a_step_takes(tmp_path, clock, factor):
    """600 s, predicted 1,000 steps of 0.6 s; the real step takes `factor` times that."""
    it = Length(run_of(tmp_path, 1000), deadline=600.0)
    done = 0
    while done < it.total(done):
        clock.now += 0.6 * factor
        done += 1
        due = done % 10 == 0 or done == it.total(done)
        if due and (steps := it.corrected(done)) is not None:
            it.change(done, steps, write=True)
    assert 590 < clock.now < 600.1
    assert read_changes(tmp_path) == it.changes


def test_a_step_that_becomes_slower_is_noticed(tmp_path, clock):
    it, done = Length(run_of(tmp_path, 1000), deadline=600.0), 0
    while done < it.total(done):
        clock.now += 0.6 if done < 500 else 1.2
        done += 1
        if done % 10 == 0 and (steps := it.corrected(done)) is not None:
            it.change(done, steps, write=False)
    assert 575 < clock.now < 612
    assert 740 < done < 770


def test_a_run_of_fixed_length_never_changes(tmp_path, clock):
    it = Length(run_of(tmp_path, 1000))
    clock.now = 1e6
    assert it.corrected(500) is None
    assert it.total(999) == it.most == 1000


def test_a_resumed_run_repeats_the_recorded_changes(tmp_path, clock):
    lines = [(0, 1000), (40, 700), (300, 720)]
    text = "".join(json.dumps({"step": a, "steps": b, "began": 0}) + "\n" for a, b in lines)
    (tmp_path / length.FILE).write_text(text)
    it = Length(run_of(tmp_path, 720))
    assert [it.total(done) for done in (0, 39, 40, 299, 300, 719)] == [
        1000,
        1000,
        700,
        700,
        720,
        720,
    ]
    assert it.corrected(350) is None
    assert change_at([], 50, 3) == Change(0, 50)


def test_a_run_of_minutes_is_saved_with_the_steps_that_it_took(tiny_run, monkeypatch):
    """The prediction is far off on purpose: it is corrected, and the run can be resumed."""
    real = Length.corrected
    monkeypatch.setattr(Length, "corrected", lambda self, done: 9 if done == 3 else None)
    run = tiny_run(steps=None, minutes=10.0, workers=0, log_every=1)
    monkeypatch.setattr(Length, "corrected", real)
    assert run.settings.steps == 9
    assert "steps: 9\n" in (run.folder / "config.yaml").read_text()
    assert read_changes(run.folder)[-1] == Change(3, 9)
    assert train.resume(run.folder, quiet=True).settings.steps == 9


def test_a_finished_run_goes_on_with_schedules_that_begin_anew(tiny_run, capsys):
    run = tiny_run("byol", steps=4, log_every=1)
    longer = train.resume(run.folder, quiet=True, extension=train.Extension(steps=6))
    assert longer.settings.steps == 10
    assert "goes on after 4 steps: 6 more, with a new schedule" in capsys.readouterr().err
    lines = [json.loads(text) for text in (run.folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    o = run.optim
    rates = [learning_rate(o, Clock(step, 4, run.steps_per_epoch)) for step in range(4)]
    rates += [learning_rate(o, Clock(step, 6, run.steps_per_epoch)) for step in range(6)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    momentum = [line["target_momentum"] for line in lines] if "target_momentum" in lines[0] else []
    assert not momentum or momentum[4] < momentum[3]
    # Once extended it is a run like others: finished now, and it can go on again.
    assert train.resume(run.folder, quiet=True).settings.steps == 10
    again = train.resume(run.folder, quiet=True, extension=train.Extension(epochs=1))
    assert again.settings.steps == 10 + run.steps_per_epoch


def test_going_on_equals_going_on_after_a_stop(tiny_run):
    """The extension is recorded: a run that is killed in it goes on with the same schedule."""
    from safetensors.torch import load_file

    whole, stopped = tiny_run(out="a", steps=2), tiny_run(out="b", steps=2)
    train.resume(whole.folder, quiet=True, extension=train.Extension(steps=4))
    length_of = Length(stopped)
    length_of.extend(2, 4, None, write=True)
    train.resume(stopped.folder, quiet=True)
    a, b = (load_file(r.folder / "encoder.safetensors") for r in (whole, stopped))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_that_is_not_finished_is_not_extended(tiny_run):
    run = tiny_run(steps=2)
    Length(run).extend(2, 4, None, write=True)
    with pytest.raises(UsageError, match="not finished.*2 of 6 steps"):
        train.resume(run.folder, quiet=True, extension=train.Extension(minutes=1))
    with pytest.raises(UsageError, match="one of --steps, --epochs, --minutes"):
        train.Extension(steps=1, minutes=2.0)
    with pytest.raises(UsageError, match="above 0"):
        train.Extension(steps=0)

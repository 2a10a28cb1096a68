"""The promise of M minutes: the number of steps follows the time that steps really take."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from nolabel.engine import length, train
from nolabel.engine.length import Length, read_changes, total_at


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
    lines = [{"step": 0, "steps": 1000}, {"step": 40, "steps": 700}, {"step": 300, "steps": 720}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
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
    assert total_at([], 50, 3) == 50


def test_a_run_of_minutes_is_saved_with_the_steps_that_it_took(tiny_run, monkeypatch):
    """The prediction is far off on purpose: it is corrected, and the run can be resumed."""
    real = Length.corrected
    monkeypatch.setattr(Length, "corrected", lambda self, done: 9 if done == 3 else None)
    run = tiny_run(steps=None, minutes=10.0, workers=0, log_every=1)
    monkeypatch.setattr(Length, "corrected", real)
    assert run.settings.steps == 9
    assert "steps: 9\n" in (run.folder / "config.yaml").read_text()
    assert read_changes(run.folder)[-1] == (3, 9)
    assert train.resume(run.folder, quiet=True).settings.steps == 9

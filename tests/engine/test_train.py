"""The loop by itself, on a made-up trainer and monitor: when it saves, and how it ends."""

from __future__ import annotations

import contextlib
import io
import shlex

import numpy as np
import pytest
import torch

import nolabel as nl
from nolabel.data.open import open_source
from nolabel.engine.loop import train
from nolabel.engine.monitor.alarms import Alarms
from nolabel.engine.monitor.monitor import next_commands
from nolabel.engine.trainer import StepResult
from nolabel.errors import GuardStop, Stopped
from nolabel.types import Clock, Step


class Settings:
    def __init__(self, **given):
        self.checkpoint_every, self.on_collapse = None, "warn"
        vars(self).update(given)


class Run:
    def __init__(self, folder, **settings):
        self.folder, self.steps_per_epoch, self.settings = folder, 2, Settings(**settings)


class FakeTrainer:
    """Notes what is called; `stop_at` and `save_at` are numbers of steps done."""

    def __init__(self, folder, *, start=0, total=4, stop_at=0, save_at=0, shorter=0,
                 **settings):  # fmt: skip
        self.shorter, self.feed = shorter, io.StringIO()
        self.run, self.start, self.total, self.first = Run(folder, **settings), start, total, True
        self.heartbeat, self.stop = contextlib.nullcontext(), contextlib.nullcontext()
        self.stop_at, self.save_at, self.calls = stop_at, save_at, []

    def clock(self, step):
        return Clock(step, self.total, 2)

    def train_step(self, clock, *, measure):
        done, one = clock.step + 1, torch.ones(())
        self.calls.append(f"step {clock.step}" + " measured" * measure)
        return StepResult(one, one, Step(one), stop=done == self.stop_at, save=done == self.save_at)

    def correct_length(self, done):
        if not self.shorter or done < 2:
            return False
        self.total, self.shorter = self.shorter, 0
        return True

    def save(self, step, *, final=False):
        self.calls.append(f"save {step}" + " final" * final)


class FakeMonitor:
    """Gives an alarm after some step."""

    def __init__(self, trainer, collapse_at=0):
        self.trainer, self.collapse_at, self.closed = trainer, collapse_at, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def line_due(self, done):
        return done % 2 == 0

    def keep_best(self):
        pass

    def set_length(self, total):
        self.trainer.calls.append(f"length {total}")

    def snapshot(self, done):
        self.trainer.calls.append(f"snapshot {done}")

    def after_step(self, clock, result):
        self.trainer.calls.append(f"after {clock.step}")
        return Alarms("Collapsed: all alike.") if clock.step + 1 == self.collapse_at else Alarms()


def go(folder, collapse_at=0, **given):
    trainer = FakeTrainer(folder, **given)
    monitor = FakeMonitor(trainer, collapse_at)
    return trainer, monitor


def test_each_step_is_taken_looked_at_and_the_end_is_saved(tmp_path):
    (tmp_path / "stopped").write_text("2\n")
    trainer, monitor = go(tmp_path, start=2)
    train(trainer, monitor)
    assert trainer.calls == [
        "snapshot 2", "step 2", "after 2", "step 3 measured", "after 3", "save 4 final",
    ]  # fmt: skip
    assert monitor.closed and not (tmp_path / "stopped").exists()


def test_a_run_that_has_to_be_shorter_ends_earlier(tmp_path):
    trainer, monitor = go(tmp_path, shorter=3)
    train(trainer, monitor)
    assert trainer.calls[-6:] == [
        "step 1 measured", "length 3", "after 1", "step 2", "after 2", "save 3 final",
    ]  # fmt: skip


def saves(trainer):
    return [call for call in trainer.calls if call.startswith("save")]


def test_it_saves_when_the_time_has_come_or_by_steps(tmp_path):
    trainer, monitor = go(tmp_path, save_at=1)
    train(trainer, monitor)
    assert saves(trainer) == ["save 1", "save 4 final"]
    trainer, monitor = go(tmp_path, checkpoint_every=2)
    train(trainer, monitor)
    assert saves(trainer) == ["save 2", "save 4 final"]  # the last step is saved once


def test_a_collapse_saves_and_ends_with_exit_code_3_if_asked_for(tmp_path):
    trainer, monitor = go(tmp_path, collapse_at=2, on_collapse="stop")
    with pytest.raises(GuardStop, match="Stopped at step 2 of 4.*saved. Collapsed: all") as stop:
        train(trainer, monitor)
    assert stop.value.exit_code == 3
    assert trainer.calls[-2:] == ["after 1", "save 2 final"] and monitor.closed
    trainer, monitor = go(tmp_path, collapse_at=2)
    train(trainer, monitor)
    assert saves(trainer) == ["save 4 final"]


def test_a_request_to_stop_saves_and_says_how_to_go_on(tmp_path):
    trainer, monitor = go(tmp_path, stop_at=3)
    with pytest.raises(Stopped, match="step 3 of 4.*nolabel resume"):
        train(trainer, monitor)
    assert saves(trainer) == ["save 3 final"]
    assert (tmp_path / "stopped").read_text() == "3\n"
    trainer, monitor = go(tmp_path, stop_at=4)  # a stop request in the last step has no effect
    train(trainer, monitor)
    assert saves(trainer) == ["save 4 final"]


def test_the_commands_to_go_on_with_are_quoted_and_fit_the_data(tmp_path, photos):
    folder = tmp_path / "my run; x"
    run = nl.pretrain(
        "simclr", data=str(photos), backbone="vit_pico", image_size=32, steps=1, batch_size=8,
        workers=0, precision="fp32", device="cpu", out=folder, quiet=True,
    )  # fmt: skip
    lines = [shlex.split(line) for line in next_commands(run, open_source(str(photos)))]
    assert [words[:2] for words in lines] == [
        ["nolabel", "report"], ["nolabel", "compare"], ["nolabel", "embed"],
    ]  # fmt: skip
    assert all(str(folder) in words for words in lines) and str(photos) in lines[2]
    bare = open_source(list(np.zeros((2, 8, 8, 3), np.uint8)))  # without labels
    assert [x.split()[1] for x in next_commands(run, bare)] == ["report", "embed", "show"]
    of_python = run.with_settings(data="object:Mine")  # no command can name them
    assert len(next_commands(of_python, bare)) == 1

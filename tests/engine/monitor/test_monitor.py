"""The monitor alone, on artificial steps: lines, alarms, roll-back, starvation."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from nolabel.engine.monitor import monitor as module
from nolabel.engine.monitor.alarms import Alarms
from nolabel.engine.monitor.doctor import Verdict
from nolabel.engine.monitor.init_guard import InitGuard
from nolabel.engine.monitor.monitor import Monitor
from nolabel.engine.monitor.progress import Progress
from nolabel.engine.trainer import StepResult
from nolabel.errors import GuardStop
from nolabel.types import Clock, Step

STEPS = 6


class Silent(Progress):
    """A bar whose notes are kept."""

    def __init__(self):
        super().__init__(STEPS, enabled="off")
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def clock(step):
    return Clock(step, STEPS, 4)


def result(loss=1.0):
    features = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    out = Step(torch.tensor(loss), {"own": torch.tensor(2.0)}, features)
    return StepResult(torch.tensor(loss), torch.tensor(3.0), out, data_wait=0.25)


def lines(trainer):
    text = (trainer.run.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def watched(toy_trainer):
    """A trainer and its monitor, not entered yet."""

    def make(**settings):
        trainer, _ = toy_trainer(**settings)
        return trainer, Monitor(trainer, Silent())

    return make


def test_a_line_has_all_its_keys_and_comes_when_it_is_due(watched):
    trainer, monitor = watched(log_every=4)
    with monitor:
        for step in range(STEPS):
            assert monitor.after_step(clock(step), result()) == Alarms()
    some = lines(trainer)
    assert [line["step"] for line in some] == [4, 6]  # every fourth, and the last
    assert set(some[0]) == {
        "step", "epoch", "loss", "lr", "weight_decay", "gradient_norm", "own", "images_per_second",
        "data_wait", "seconds", "feature_std", "effective_rank", "loss_spikes",
    }  # fmt: skip
    assert some[0]["epoch"] == 1.0 and some[0]["own"] == 2.0 and some[0]["gradient_norm"] == 3.0
    assert monitor.recorder.metrics.file.closed


def test_snapshots_are_kept_at_their_steps(watched):
    trainer, monitor = watched()
    with monitor:
        monitor.snapshot(0)
        monitor.after_step(clock(0), result())
    names = {p.name for p in (trainer.run.folder / "film").iterdir()}
    assert names == {"images.npz", "step-000000000.npz", "step-000000001.npz"}


def test_a_collapse_is_an_alarm_and_is_reported_when_it_begins(watched, monkeypatch):
    trainer, monitor = watched(log_every=1)
    verdict = Verdict("collapsed", "the features are the same", "Do something.")
    with monitor:
        monkeypatch.setattr(monitor.recorder.doctor, "update", lambda line: verdict)
        for step in range(2):
            alarms = monitor.after_step(clock(step), result())
            assert alarms == Alarms("Collapsed: the features are the same. Do something.")
        # Another alarm is a verdict in the line, but does not end the run.
        other = Verdict("diverging", "the loss grows")
        monkeypatch.setattr(monitor.recorder.doctor, "update", lambda line: other)
        assert monitor.after_step(clock(2), result()) == Alarms()
    assert [line["verdict"] for line in lines(trainer)] == ["collapsed", "collapsed", "diverging"]
    assert [note.split(":")[:2] for note in monitor.progress.notes] == [
        ["Step 1", " Collapsed"], ["Step 3", " Diverging"],
    ]  # fmt: skip


def spoil(encoder):
    """A network after a rate that is far too high: all features are equal."""
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(0)


def test_a_network_that_is_destroyed_is_rolled_back_to_the_last_good_one(watched):
    trainer, monitor = watched(init="unused", warm_heads=0, init_guard="rollback", log_every=1,
                               probe_every=1)  # fmt: skip
    encoder = trainer.method.encoder
    with monitor:
        assert isinstance(monitor.recorder.init_guard, InitGuard)
        monitor.after_step(clock(0), result())  # still good
        good = {k: v.clone() for k, v in encoder.state_dict().items()}
        spoil(encoder)
        with pytest.raises(GuardStop, match="that of step 1") as stop:
            monitor.after_step(clock(1), result())
    assert stop.value.exit_code == 3
    assert "CKA" in str(stop.value) and "--optim.lr" in str(stop.value)
    assert all(torch.equal(v, good[k]) for k, v in encoder.state_dict().items())
    written = load_file(trainer.run.folder / "encoder.safetensors")
    assert all(v.float().abs().sum() > 0 for k, v in written.items() if k.endswith("qkv.weight"))
    assert lines(trainer)[0]["init_similarity"] > 0.999 > 0.5 > lines(trainer)[1]["init_similarity"]


def test_with_a_warning_alone_the_run_goes_on(watched):
    trainer, monitor = watched(init="unused", warm_heads=0, init_guard="warn", log_every=1,
                               probe_every=1)  # fmt: skip
    with monitor:
        spoil(trainer.method.encoder)
        alarms = monitor.after_step(clock(0), result())
    assert alarms.destroyed and not alarms.collapsed
    assert "Step 1: the weights of --init are being destroyed" in monitor.progress.notes[0]
    assert not (trainer.run.folder / "encoder.safetensors").exists()


def test_a_line_that_cannot_be_written_is_reported_and_the_run_goes_on(watched, monkeypatch):
    def full(line):
        raise OSError(28, "No space left on device")

    _, monitor = watched(log_every=1)
    with monitor:
        monkeypatch.setattr(monitor.recorder.metrics, "write", full)
        monitor.after_step(clock(0), result())
    assert "Could not write metrics at step 1" in monitor.progress.notes[0]


def test_starvation_is_explained_once(watched, monkeypatch):
    _, monitor = watched()
    monkeypatch.setattr(monitor.progress, "starving", lambda: True)
    monkeypatch.setattr(module, "explain_slow_loading", lambda *a, **k: "Decoding is slow.")
    with monitor:
        monitor.after_step(clock(0), result())
        monitor.after_step(clock(1), result())
    (note,) = monitor.progress.notes
    assert re.fullmatch(r"Waiting for data takes \d+% of the time. Decoding is slow.", note)


def test_only_the_first_process_writes(watched, monkeypatch):
    trainer, monitor = watched(log_every=1)
    trainer.first = False
    broadcast = Alarms("Collapsed: found by rank 0.")
    monkeypatch.setattr(module.parallel, "broadcast_object", lambda value: broadcast)
    with monitor:
        assert monitor.recorder is None
        assert monitor.after_step(clock(0), result()) == broadcast
    assert list(trainer.run.folder.iterdir()) == []

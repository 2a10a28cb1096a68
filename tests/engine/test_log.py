"""Metrics as strict JSON lines, progress on a terminal and without one, and the machine."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from nolabel.engine import environment as env
from nolabel.engine import log
from nolabel.engine.log import MetricsLog, Progress, say


def lines(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in text]


def test_each_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.write({"step": 1, "loss": 0.5})
        assert lines(path) == [{"step": 1, "loss": 0.5}]


def test_numbers_that_are_not_finite_become_null_wherever_they_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.write(
            {
                "step": 1,
                "a": math.nan,
                "b": {"c": -math.inf},
                "d": [math.inf, 1.0],
                "e": np.float32("nan"),
                "f": torch.tensor(2),
                "g": "é",
            }  # fmt: skip
        )
    assert lines(path) == [
        {"step": 1, "a": None, "b": {"c": None}, "d": [None, 1.0], "e": None, "f": 2, "g": "é"}
    ]


def test_a_resumed_log_has_no_step_twice_and_none_missing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        for done in range(1, 8):  # a line's step is the number of steps done
            metrics.write({"step": done})
    with MetricsLog(path, start=4) as metrics:
        for done in range(5, 11):
            metrics.write({"step": done})
    assert [m["step"] for m in lines(path)] == list(range(1, 11))


def test_killed_while_dropping_lines_the_log_is_as_before(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        for done in range(1, 6):
            metrics.write({"step": done})

    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    for call in ("fsync", "replace"):
        with monkeypatch.context() as m, pytest.raises(Killed):
            m.setattr(os, call, die)
            MetricsLog(path, start=2)
        assert [m["step"] for m in lines(path)] == [1, 2, 3, 4, 5]
    MetricsLog(path, start=2).close()
    assert [m["step"] for m in lines(path)] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


class Time:
    """A clock that the test sets."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(log.time, "monotonic", lambda: self.now)


def test_without_a_terminal_there_is_a_line_every_ten_seconds_and_one_at_the_end(
    monkeypatch, capsys
):
    clock = Time(monkeypatch)
    with Progress(100) as bar:
        for step in range(1, 101):
            clock.now += 0.6
            bar.update(step, 0.25, 32, 0.15)
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert out == ""
    assert len(told) == 6  # 60 seconds: five full tens and the end
    assert told[0].startswith("step 17/100")
    assert told[-1].startswith("step 100/100")
    assert "loss 0.2500" in told[0] and "53 images/s" in told[0]
    assert "data wait 25%" in told[0]
    assert "50 s left" in told[0]


def test_rates_are_those_of_the_last_steps_not_of_the_whole_run(monkeypatch):
    clock = Time(monkeypatch)
    with Progress(1000, enabled="off") as bar:
        for step in range(1, 101):  # slow at first: one image a second, waiting all the time
            clock.now += 1.0
            bar.update(step, 1.0, 1, 1.0)
        assert bar.rate == pytest.approx(1.0)
        assert bar.data_wait == pytest.approx(1.0)
        for step in range(101, 201):
            clock.now += 0.1
            bar.update(step, 1.0, 1, 0.0)
        assert bar.rate == pytest.approx(10.0)
        assert bar.data_wait == pytest.approx(0.0)


def test_off_means_silence_and_notes_go_to_standard_error(capsys):
    with Progress(2, enabled="off") as bar:
        bar.update(2, 1.0, 1, 0.0)
        bar.note("unheard")
    assert capsys.readouterr() == ("", "")
    with Progress(20) as bar:
        bar.note("heard [bold]as it is[/bold]")
    say("plain")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "heard [bold]as it is[/bold]\nplain\n")


def test_on_a_terminal_there_is_a_bar_and_notes_stand_above_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(4, start=1) as bar:
        bar.update(2, 0.5, 8, 0.0)
        bar.note("a note [1]")
        bar.update(4, 0.125, 8, 0.0)
    shown = screen.getvalue()
    assert "a note [1]" in shown
    assert "4/4" in shown and "loss 0.1250" in shown and "data wait" in shown
    assert shown.count("a note") == 1


def test_the_environment_is_plain_json_with_versions_and_hardware():
    found = env.environment()
    assert json.loads(json.dumps(found)) == found
    assert {"python", "torch", "torchvision", "timm", "numpy", "nolabel"} <= found[
        "versions"
    ].keys()
    assert found["versions"]["nolabel"] != "unknown"
    assert found["cores"] >= 1 and found["cpu"] and found["system"] and found["date"]
    assert found["commit"] is None or len(found["commit"]) == 40


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_package_installed_inside_anothers_checkout_is_not_given_its_commit(
    tmp_path, monkeypatch
):
    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    inside = tmp_path / ".venv" / "environment.py"
    inside.parent.mkdir()
    inside.write_text("")
    monkeypatch.setattr(env, "__file__", str(inside))
    git("commit", "--allow-empty", "-m", "theirs")
    assert env.environment()["commit"] is None  # git does not track the file
    git("add", ".")
    git("commit", "-m", "ours")
    assert len(env.environment()["commit"]) == 40
    monkeypatch.setenv("PATH", "")
    assert env.environment()["commit"] is None  # nor is git needed

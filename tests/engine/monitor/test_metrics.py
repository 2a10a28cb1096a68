"""Metrics as strict JSON lines."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch

from nolabel.engine.monitor.metrics import MetricsLog


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


def test_metrics_of_steps_that_are_run_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.write({"step": step, "loss": float("nan") if step == 2 else 1.0})
    log.close()
    path.write_text(path.read_text() + '{"step": 6, "lo')  # cut short by a crash
    MetricsLog(path, start=3).close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [m["step"] for m in lines] == [1, 2, 3]
    assert lines[1]["loss"] is None

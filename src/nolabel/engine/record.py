"""What a run's folder says of it while it trains: metrics, verdicts, probes, looks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.engine import probe
from nolabel.engine import start as begin
from nolabel.engine.doctor import Doctor
from nolabel.engine.film import Film
from nolabel.engine.health import signals
from nolabel.engine.log import MetricsLog, Progress, read_metrics
from nolabel.methods.base import Method
from nolabel.views.plan import ViewPlan


class Said(NamedTuple):
    """What a line means for the training."""

    collapsed: str = ""  # the alarm, while its state is collapsed
    destroyed: str = ""  # why the network of --init is being destroyed


class Record:
    """Kept by the first process of a run alone.

    Args:
        run: resolved, with its length.
        method, plan, source: of the run.
        start: step at which it starts or goes on.
        bar: for what is to be said.
    """

    def __init__(
        self, run: Run, method: Method, plan: ViewPlan, source: Source, start: int, bar: Progress
    ):
        s, self.folder, self.total = run.settings, run.folder, int(run.settings.steps or 0)
        self.method, self.plan, self.start, self.bar = method, plan, start, bar
        self.log_every = log_every(run)
        self.probe_every = s.probe_every or max(self.total // 10, 1)
        self.prober = (
            probe.Probe(s.probe, s.image_size, s.download, s.channels) if s.probe else None
        )
        self.watch: begin.StartGuard | None = None
        if s.init and s.init_guard != "off" and not s.shard and len(source) >= begin.LEAST:
            self.watch = begin.StartGuard(self.folder, method.encoder, plan, source, self.prober)
        self.metrics = MetricsLog(self.folder / "metrics.jsonl", start)
        self.doctor, self.alarm = Doctor(self.total), None
        for old in read_metrics(self.folder / "metrics.jsonl"):
            self.alarm = self.doctor.look(old)
        self.film = Film(self.folder, source, plan, int(s.image_size or 0), self.total, bar.note)
        self.began = time.monotonic()

    def line(self, given: Mapping[str, Any], features: Tensor | None) -> Said:
        """Adds a line about the steps so far: what is given, the signals, a probe when it is due,
        and the doctor's verdict."""
        done = int(given["step"])
        line = dict(given) | {
            "images_per_second": self.bar.rate,
            "data_wait": self.bar.data_wait,
            "seconds": time.monotonic() - self.began,
        }
        if self.start and done - self.start <= self.log_every:
            line["resumed_at"] = self.start
        if features is not None:
            line |= signals(features)
        due, why = done % self.probe_every < self.log_every or done == self.total, ""
        if self.prober and due:
            line["probe_knn"] = self.prober(self.method.encoder, self.plan)
            self.bar.note(f"step {done}: k-NN {line['probe_knn']:.1%}")
        if self.watch and due:
            seen = self.watch.look(done, self.method.encoder, line.get("probe_knn"))
            why = seen.pop("why") or ""
            line |= seen
        before, self.alarm = self.alarm, self.doctor.look(line)
        line["loss_spikes"] = self.doctor.spikes
        if self.alarm:
            line["verdict"] = self.alarm.state
            if before is None or before.state != self.alarm.state:
                self.bar.note(f"Step {done}: {self.alarm}")
        try:
            self.metrics.write(line)
        except OSError as error:  # a full disk loses a line, not the run
            self.bar.note(f"Could not write metrics at step {done}: {error}")
        ill = self.alarm is not None and self.alarm.state == "collapsed"
        return Said(str(self.alarm) if ill else "", why)

    def go_back(self) -> int:
        """Puts the last good network in place (--init-guard rollback); the step that it is of."""
        assert self.watch is not None  # noqa: S101 - it is who asked
        return self.watch.go_back(self.method.encoder)

    def close(self) -> None:
        """Closes the file."""
        self.metrics.close()


def log_every(run: Run) -> int:
    """Steps between lines of metrics.jsonl: about a hundred lines a run."""
    total = int(run.settings.steps or 0)
    return run.settings.log_every or max(min(total // 100, 100), 1)

"""The part of the monitor that runs on rank 0 only and writes to the run's folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.engine.monitor.alarms import Alarms
from nolabel.engine.monitor.best import Best
from nolabel.engine.monitor.doctor import Doctor, Verdict
from nolabel.engine.monitor.init_guard import MIN_IMAGES, InitGuard
from nolabel.engine.monitor.metrics import MetricsLog, read_metrics
from nolabel.engine.monitor.probe import Probe
from nolabel.engine.monitor.progress import Progress
from nolabel.engine.monitor.signals import signals
from nolabel.engine.monitor.snapshots import FeatureSnapshots, snapshot_steps
from nolabel.methods.base import Method
from nolabel.views.plan import ViewPlan


class Recorder:
    """Writes metrics.jsonl, with signals, probe, init guard and the doctor's verdict in it.

    Args:
        run: resolved run.
        method, plan, source: of the run.
        start: step from which the run starts or continues.
        progress: measures the rates, and prints lines for the user.
        probe: of the run, where it is open already.
    """

    def __init__(
        self, run: Run, method: Method, plan: ViewPlan, source: Source, start: int,
        progress: Progress, probe: Probe | None = None,
    ):  # fmt: skip
        s, self.total = run.settings, run.settings.steps
        self.method, self.plan, self.start, self.progress = method, plan, start, progress
        self.log_every = s.log_every
        self.probe_every = s.probe_every
        self.probe = probe or Probe.of(run)
        self.init_guard: InitGuard | None = None
        if s.init and s.init_guard != "off" and not s.shard and len(source) >= MIN_IMAGES:
            self.init_guard = InitGuard(run.folder, method.encoder, plan, source, self.probe)
        self.metrics = MetricsLog(run.folder / "metrics.jsonl", start)
        self.doctor = Doctor(self.total)
        self.verdict: Verdict | None = None  # the present alarm, if any
        self.best = Best(run, method, plan, source) if s.keep == "best" else None
        for old in read_metrics(run.folder / "metrics.jsonl"):
            self.verdict = self.doctor.update(old)
            if self.best:
                self.best.recall(old)
        self.snapshots = FeatureSnapshots(
            run.folder, source, plan, s.image_size, 0 if s.private else self.total, progress.note
        )
        self.began = time.monotonic()

    def set_length(self, total: int) -> None:
        """Takes another number of steps of the run."""
        self.total = self.doctor.total = total
        if self.snapshots.due:  # empty in private runs
            self.snapshots.due = snapshot_steps(total)

    def record(self, given: Mapping[str, Any], features: Tensor | None) -> Alarms:
        """Adds a line to metrics.jsonl.

        Args:
            given: values of the line that all processes computed together.
            features: features [B, D] of the global batch, for the signals.

        Returns:
            The alarms of this line.
        """
        done = int(given["step"])
        line = dict(given) | {
            "images_per_second": self.progress.rate,
            "data_wait": self.progress.data_wait,
            "seconds": time.monotonic() - self.began,
        }
        if self.start and done - self.start <= self.log_every:
            line["resumed_at"] = self.start
        if features is not None:
            line |= signals(features)
        destroyed = self._probe(line) if self._probe_is_due(done) else ""
        self._examine(line)
        try:
            self.metrics.write(line)
        except OSError as error:  # a full disk loses a line, not the run
            self.progress.note(f"Could not write metrics at step {done}: {error}")
        collapsed = self.verdict is not None and self.verdict.state == "collapsed"
        return Alarms(str(self.verdict) if collapsed else "", destroyed)

    def _probe_is_due(self, done: int) -> bool:
        return done % self.probe_every < self.log_every or done == self.total

    def _probe(self, line: dict[str, Any]) -> str:
        """Adds the results of the probe and the init guard to the line.

        Returns:
            Why the init guard says that training destroys the network of --init; else "".
        """
        done, encoder = int(line["step"]), self.method.encoder
        if self.probe:
            line["probe_knn"] = self.probe(encoder, self.plan)
            self.progress.note(f"step {done}: k-NN {line['probe_knn']:.1%}")
        if self.best:
            self.best.update(line, self.progress.note)
        if not self.init_guard:
            return ""
        found = self.init_guard.check(done, encoder, line.get("probe_knn"))
        line |= {"init_similarity": found.similarity, "init_rank": found.rank}
        return found.destroyed

    def _examine(self, line: dict[str, Any]) -> None:
        """Adds the doctor's findings, and reports an alarm when it begins."""
        before, self.verdict = self.verdict, self.doctor.update(line)
        line["loss_spikes"] = self.doctor.spikes
        if self.verdict:
            line["verdict"] = self.verdict.state
            if before is None or before.state != self.verdict.state:
                self.progress.note(f"Step {line['step']}: {self.verdict}")

    def close(self) -> None:
        """Closes metrics.jsonl."""
        with contextlib.suppress(OSError):  # a full disk: the last line is lost, and said
            self.metrics.close()

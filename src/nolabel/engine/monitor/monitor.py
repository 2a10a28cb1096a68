"""The monitor of a run: all ranks call it, rank 0 does the work, and the result is broadcast."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from nolabel import _usercode, distributed
from nolabel.config import Run
from nolabel.data.open import OBJECT_PREFIX
from nolabel.data.source import Source
from nolabel.data.stages import explain_slow_loading
from nolabel.engine import parallel, run_folder
from nolabel.engine.compiled import without_compile
from nolabel.engine.final_scores import MIN_STEPS, final_scores
from nolabel.engine.log import say
from nolabel.engine.monitor.alarms import Alarms
from nolabel.engine.monitor.doctor import examine
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.monitor.probe import Probe
from nolabel.engine.monitor.progress import Progress
from nolabel.engine.monitor.recorder import Recorder
from nolabel.engine.monitor.snapshots import snapshot_steps
from nolabel.engine.optimiser import decay_in_use
from nolabel.engine.trainer import StepResult, Trainer
from nolabel.engine.update_size import update_metrics
from nolabel.errors import GuardStop, command
from nolabel.nn.schedules import learning_rate
from nolabel.types import Clock


class Monitor:
    """Progress, metrics, probe, snapshots, doctor and init guard of a run.

    A context manager. Methods with collectives must be called by all ranks.

    Args:
        trainer: of the run.
        progress: the bar; prints notes to the user.
        since: what came before the trainer's start step, if it is above 0.
        probe: of the run, where it is open already.
    """

    def __init__(
        self, trainer: Trainer, progress: Progress, *, since: str = "resuming",
        probe: Probe | None = None,
    ):  # fmt: skip
        self.trainer, self.run, self.progress = trainer, trainer.run, progress
        self.since, self.probe = since, probe
        self.log_every = trainer.run.settings.log_every
        self.snapshot_steps = snapshot_steps(trainer.total)
        self.starving = False  # whether slow loading was reported
        self.recorder: Recorder | None = None  # on rank 0, inside the context
        self.began = time.monotonic()

    def __enter__(self) -> Monitor:
        t = self.trainer
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.progress)
            if t.first:
                self.recorder = Recorder(
                    t.run, t.method, t.plan, t.source, t.start, self.progress, self.probe
                )
                stack.callback(self.recorder.close)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def line_due(self, done: int) -> bool:
        """Whether a line of metrics is written after `done` steps."""
        return done % self.log_every == 0 or done == self.trainer.total

    def set_length(self, total: int) -> None:
        """Takes another number of steps of the run (`Trainer.correct_length`)."""
        self.progress.set_total(total)
        self.snapshot_steps = snapshot_steps(total)
        if self.recorder:
            self.recorder.set_length(total)

    def after_step(self, clock: Clock, result: StepResult) -> Alarms:
        """Updates the bar, logs, probes and takes snapshots after a step. A collective.

        Returns:
            The alarms of the line of metrics, if one was due.

        Raises:
            GuardStop: the features of --init were being destroyed; the weights were rolled back.
        """
        done = clock.step + 1
        batch_size = self.run.settings.batch_size
        self.progress.update(done, float(result.loss), batch_size, result.data_wait)
        self._check_starvation(done)
        alarms = self.log(clock, result) if self.line_due(done) else Alarms()
        if alarms.destroyed:
            self.guard_init(alarms.destroyed, done)
        self.snapshot(done)
        return alarms

    def log(self, clock: Clock, result: StepResult) -> Alarms:
        """Writes a line of metrics, with a probe if it is due. A collective.

        Returns:
            The alarms of the line, equal on all ranks.
        """
        t, done, out = self.trainer, clock.step + 1, result.step
        line: dict[str, Any] = {
            "step": done,
            "epoch": done / self.run.steps_per_epoch,
            "loss": float(result.loss),
            "lr": learning_rate(self.run.optim, clock),
            "weight_decay": decay_in_use(t.optimiser),
            "gradient_norm": float(result.gradient_norm),
            **parallel.all_reduce_mean(out.logs),
            **update_metrics(t.method, result.update_size),
        }
        features = None if out.features is None else distributed.gather(out.features)
        with self._probing():
            alarms = self.recorder.record(line, features) if self.recorder else Alarms()
            return parallel.broadcast_object(alarms)

    def snapshot(self, done: int) -> None:
        """Saves the features of a few images, at a few steps of the run. A collective."""
        if done in self.snapshot_steps:
            with self._probing():
                if self.recorder:
                    self.recorder.snapshots.snapshot(done, self.trainer.method.encoder)

    @contextlib.contextmanager
    def _probing(self) -> Iterator[None]:
        """Inside, rank 0 may run the network by itself."""
        compiled = self.run.settings.compile
        with self.trainer.distributed.unsharded(), without_compile(compiled):
            yield

    def _check_starvation(self, done: int) -> None:
        """Reports once, with the reason, that loading data slows the training down.

        Where decoded images stay in memory, the first epoch decodes them, and says nothing.
        """
        decodes = self.run.settings.cache != "off" and done < 1.2 * self.run.steps_per_epoch
        if self.starving or decodes or not self.progress.starving():
            return
        t, self.starving = self.trainer, True
        workers = self.run.settings.workers
        why = explain_slow_loading(t.source, t.plan, device=t.device, workers=workers)
        share = self.progress.data_wait
        self.progress.note(f"Waiting for data takes {share:.0%} of the time. {why}")

    def guard_init(self, why: str, done: int) -> None:
        """Warns that the features of --init are being destroyed, or restores the last good weights
        and ends the run (`--init-guard rollback`). A collective.

        Raises:
            GuardStop: the weights were rolled back.
        """
        s, t = self.run.settings, self.trainer
        advice = "Try a smaller --optim.lr or more --warm-heads."
        if s.init_guard == "warn":
            self.progress.note(
                f"Step {done}: the weights of --init are being destroyed: {why}. {advice}"
            )
            return
        good = 0
        if self.recorder and self.recorder.init_guard:
            good = self.recorder.init_guard.roll_back(t.method.encoder)
            run_folder.export(self.run, t.method, t.plan)
        raise GuardStop(
            f"Stopped at step {done}: the weights of --init were being destroyed ({why}). The "
            f"encoder in {self.run.folder} is that of step {parallel.broadcast_object(good)}. "
            f"{advice}"
        )

    def keep_best(self) -> None:
        """At the end of a run with `--keep best`: the best encoder takes the last one's place."""
        best = self.recorder.best if self.recorder else None
        if best is not None:
            best.take(self.trainer.total, self.progress.note)

    def summary(self) -> None:
        """Prints what was trained and where it is, the doctor's verdict, and what to do next."""
        t, batch_size = self.trainer, self.run.settings.batch_size
        images, seconds = (t.total - t.start) * batch_size, time.monotonic() - self.began
        folder = self.run.folder
        done = f"Done: {t.total} steps"
        done += f" ({t.total - t.start} of them since {self.since})" if t.start else ""
        say(f"{done}, {images:,} images in {seconds:.0f} s.")
        say(f"Encoder: {run_folder.encoder_file(self.run)}")
        workers = self.run.settings.workers
        say(f"Verdict: {examine(read_metrics(folder / 'metrics.jsonl'), t.total, workers)}")
        if t.total >= MIN_STEPS:
            probe = self.recorder.probe if self.recorder else None
            for line in final_scores(self.run, t.source, probe):
                say(line)
        say("Next:")
        for line in next_commands(self.run, t.source):
            say(f"  {line}")


def next_commands(run: Run, source: Source) -> list[str]:
    """What to do with a trained run: commands to copy, the report first.

    Args:
        run: in its folder.
        source: its data; labels (the names of folders) are for measuring only.
    """
    folder, data = str(run.folder), run.settings.data
    lines = [command("nolabel", "report", folder)]
    if data.startswith(OBJECT_PREFIX):  # only Python has them
        return lines
    code = _usercode.parse(data)
    if code is not None and code.digest:
        original = _usercode.records(data)[code.copy]["original"]
        data = f"{original}:{code.attribute}"
    if source.labels is not None and len(source.classes) > 1:
        names = (folder, "pixels", f"random:{folder}")
        lines.append(command("nolabel", "compare", *names, "--train", data))
    index = str(run.folder / "features.npy")
    lines.append(command("nolabel", "embed", "--encoder", folder, "--data", data, "--out", index))
    if len(lines) < 3:
        where = ("--data", data, "--out", str(run.folder / "pictures"))
        lines.append(command("nolabel", "show", "neighbours", "--encoder", folder, *where))
    return lines

"""The number of steps of a run of M minutes, corrected while it trains.

The time of a step is predicted before training, from few images, and it changes: files come into
the page cache, other programs start. So the number of steps left is computed again from the time
that the steps really take, until the end. Schedules are functions of the clock, whose total then
changes with it. Each change is recorded, so that a resumed run repeats it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import deque
from pathlib import Path

from nolabel._files.atomic import write_text
from nolabel.config import Run

FILE = "length.jsonl"
FIRST = 0.03  # share of the minutes after which the first correction is made
TOLERANCE = 0.02  # relative change of the number of steps left that is not worth a correction
RESERVE = 1.5  # seconds at the end, for the last checkpoint and the encoder file
WINDOW = 30  # lines of metrics over which the time of a step is taken


class Length:
    """The number of steps of a run.

    Args:
        run: resolved; its steps are the prediction.
        deadline: time.monotonic() at which a run of M minutes ends; None for runs of a fixed
            length, and for resumed runs, which keep the last number of steps.
    """

    def __init__(self, run: Run, deadline: float | None = None):
        self.file, self.predicted = run.folder / FILE, run.settings.steps
        self.began, self.deadline = time.monotonic(), deadline
        self.changes: list[tuple[int, int]] = []  # (step, steps of the run from then on)
        self._recent = deque([(self.began, 0)], maxlen=WINDOW)  # (time, steps done)
        if deadline is None:
            self.changes = read_changes(run.folder)

    def total(self, done: int) -> int:
        """Steps of the run, as it was known after `done` steps."""
        return total_at(self.changes, self.predicted, done)

    @property
    def most(self) -> int:
        """A number of steps that the run will not reach, unless its length is fixed."""
        return self.predicted if self.deadline is None and not self.changes else sys.maxsize // 2

    def corrected(self, done: int) -> int | None:
        """A new number of steps after `done` steps, if it has to change; called on rank 0."""
        if self.deadline is None:
            return None
        now, before = time.monotonic(), self.total(done)
        self._recent.append((now, done))
        since, first = self._recent[0]
        if done < before and now - self.began < FIRST * (self.deadline - self.began):
            return None
        left = self.deadline - RESERVE - now
        steps = max(done + round(left * (done - first) / (now - since)), done)
        return None if abs(steps - before) <= TOLERANCE * (before - done) else steps

    def change(self, done: int, steps: int, *, write: bool) -> None:
        """Takes the new number of steps; it is recorded in the run's folder if `write`."""
        if not self.changes:
            self.changes.append((0, self.predicted))
        self.changes.append((done, steps))
        if write:
            lines = [json.dumps({"step": at, "steps": n}) + "\n" for at, n in self.changes]
            with contextlib.suppress(OSError):  # a full disk loses the record, not the run
                write_text(self.file, "".join(lines))


def read_changes(folder: Path) -> list[tuple[int, int]]:
    """The recorded changes of a run's length: (step, steps of the run from then on)."""
    changes = []
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        for line in (folder / FILE).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            changes.append((int(entry["step"]), int(entry["steps"])))
    return changes


def total_at(changes: list[tuple[int, int]], predicted: int, done: int) -> int:
    """Steps of the run, as it was known after `done` steps."""
    known = [steps for step, steps in changes if step <= done]
    return known[-1] if known else predicted

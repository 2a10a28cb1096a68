"""The number of steps of a run of M minutes, corrected while it trains.

The time of a step is predicted before training, from few images, and it changes: files come into
the page cache, other programs start. So the number of steps left is computed again from the time
that the steps really take, until the end. Schedules are functions of the clock, whose total then
changes with it. Each change is recorded, so that a resumed run repeats it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from nolabel._files import read_text, write_text
from nolabel.config import Run
from nolabel.types import Clock

FILE = "length.jsonl"
FIRST = 0.03  # share of the minutes after which the first correction is made
TOLERANCE = 0.02  # relative change of the number of steps left that is not worth a correction
RESERVE = 1.5  # seconds at the end, for the last checkpoint and the encoder file
WINDOW = 30  # lines of metrics over which the time of a step is taken


@dataclass(frozen=True)
class Change:
    """A change of a run's length."""

    step: int  # steps done when it was made
    steps: int  # of the run from then on
    began: int = 0  # step at which the schedules began; above 0 after a finished run went on

    def clock(self, step: int, steps_per_epoch: int) -> Clock:
        """The clock of a step."""
        return Clock(step, self.steps, steps_per_epoch, self.began)


class Length:
    """The number of steps of a run.

    Args:
        run: resolved; its steps are the prediction.
        deadline: time.monotonic() at which a run of M minutes ends; None for runs of a fixed
            length, and for resumed runs, which keep the last number of steps.
        done: steps done by now, whose time tells nothing about the others'.
    """

    def __init__(self, run: Run, deadline: float | None = None, *, done: int = 0):
        self.file, self.predicted = run.folder / FILE, run.settings.steps
        self.began, self.deadline = time.monotonic(), deadline
        self.changes = read_changes(run.folder) if deadline is None else []
        self._recent = deque([(self.began, done)], maxlen=WINDOW)  # (time, steps done)

    def at(self, done: int) -> Change:
        """The length of the run, as it was known after `done` steps."""
        return change_at(self.changes, self.predicted, done)

    def total(self, done: int) -> int:
        """Steps of the run, as it was known after `done` steps."""
        return self.at(done).steps

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
        self._record(Change(done, steps, self.at(done).began), write)

    def extend(self, done: int, more: int, deadline: float | None, *, write: bool) -> None:
        """Lets a finished run go on, with schedules that begin anew.

        Args:
            done: its steps.
            more: steps to add; a prediction if there is a deadline.
            deadline: time.monotonic() at which it ends; None: after `more` steps.
            write: whether to record it in the run's folder.
        """
        self.began, self.deadline = time.monotonic(), deadline
        self._recent = deque([(self.began, done)], maxlen=WINDOW)
        self._record(Change(done, done + more, done), write)

    def _record(self, change: Change, write: bool) -> None:
        if not self.changes:
            self.changes.append(Change(0, self.predicted))
        self.changes.append(change)
        if write:
            lines = [json.dumps(dataclasses.asdict(c)) + "\n" for c in self.changes]
            with contextlib.suppress(OSError):  # a full disk loses the record, not the run
                write_text(self.file, "".join(lines))


def read_changes(folder: Path) -> list[Change]:
    """The recorded changes of a run's length."""
    changes = []
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, ArithmeticError):
        for line in (read_text(folder / FILE) or "").splitlines():
            entry = json.loads(line)
            changes.append(Change(*(int(entry[k]) for k in ("step", "steps", "began"))))
    return changes


def change_at(changes: list[Change], predicted: int, done: int) -> Change:
    """The length of a run, as it was known after `done` steps."""
    known = [change for change in changes if change.step <= done]
    return known[-1] if known else Change(0, predicted)

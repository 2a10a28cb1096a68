"""Shows the progress of a run: a bar on a terminal, lines of text elsewhere, with rates."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from typing import Any

from nolabel.data.progress import bar_shown
from nolabel.engine.log import say
from nolabel.errors import visible

FIRST_SECONDS, LINE_SECONDS = 4.0, 10.0  # between lines: at the start, and later
WINDOW = 50  # steps over which rates are taken
STARVED = 0.1  # share of time spent waiting for data above which the run reports the cause


class Progress:
    """A bar with loss, images/s, ETA and the share of time spent waiting for data.

    Args:
        total: steps of the run.
        start: step from which the run starts or continues.
        rises: why the loss may rise, said once at the start; "" if it may not.
        enabled: "auto": a bar on a terminal, lines of text elsewhere; "off": nothing.
    """

    def __init__(self, total: int, start: int = 0, enabled: str = "auto", rises: str = ""):
        self.rises = rises
        self._bar_shown = contextlib.ExitStack()
        self.total, self.start, self.enabled = total, start, enabled
        self.rate = 0.0  # images per second
        self.data_wait = 0.0  # share of time spent waiting for data
        self._recent: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=WINDOW)
        self._line_time = self._began = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.enabled == "auto":
            self._bar_shown.enter_context(bar_shown())
        self._recent.append((time.monotonic(), 0, 0.0))
        if self.enabled == "auto" and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=self.total, completed=self.start, text="")
            self._bar.start()
        if self.rises and not self.start:
            self.note(f"About the loss: {self.rises}.")
        return self

    def __exit__(self, *args: object) -> None:
        self._bar_shown.close()
        if self._bar:
            self._bar.stop()

    def set_total(self, total: int) -> None:
        """Takes another number of steps of the run."""
        self.total = total
        if self._bar:
            self._bar.update(self._task, total=total)

    def update(self, step: int, loss: float, images: int, wait_seconds: float) -> None:
        """Reports a finished step.

        Args:
            step: number of steps done.
            loss: of the step.
            images: of the step, over all processes.
            wait_seconds: time that the step waited for data.
        """
        now = time.monotonic()
        self._recent.append((now, images, wait_seconds))
        span = now - self._recent[0][0]
        later = list(self._recent)[1:]
        if span > 0:
            self.rate = sum(n for _, n, _ in later) / span
            self.data_wait = min(sum(w for *_, w in later) / span, 1.0)
        may = " (may rise)" if self.rises else ""
        text = f"loss {loss:.4f}{may}  {self.rate:,.0f} images/s  data wait {self.data_wait:.0%}"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif self.enabled == "auto" and (
            now - self._line_time > self._pause(now) or step == self.total
        ):
            self._line_time = now
            left = (self.total - step) * span / max(len(later), 1)
            say(f"step {step}/{self.total}  {text}  {left:.0f} s left")

    def _pause(self, now: float) -> float:
        """Seconds between two lines: few at the start, more as the run gets longer."""
        return min(max(FIRST_SECONDS, (now - self._began) / 20), LINE_SECONDS)

    def starving(self) -> bool:
        """Whether the run waits too long for data. False at the start, while workers start up."""
        span = self._recent[-1][0] - self._recent[0][0]
        steady = span > 3 and (len(self._recent) == WINDOW or span > 60)
        return steady and self.enabled == "auto" and self.data_wait > STARVED

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._bar:
            self._bar.console.print(visible(text), markup=False, highlight=False)
        elif self.enabled == "auto":
            say(text)

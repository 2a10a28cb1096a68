"""metrics.jsonl, the progress bar, and plain lines where there is no terminal."""

from __future__ import annotations

import collections
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nolabel import distributed

LINE_SECONDS = 10.0
WINDOW = 50  # steps over which rates are taken
STARVED = 0.1  # share of time spent waiting for data above which the run says why


def say(text: str) -> None:
    """A line for the user, on standard error so that standard output stays data; from the first
    process of a run alone."""
    if distributed.speaks():
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line on standard error from whichever process it concerns."""
    print(f"process {distributed.rank()}: {text}", file=sys.stderr, flush=True)


class MetricsLog:
    """Appends one JSON object a line, flushed at once.

    A line's "step" is the number of steps done, so a run that resumes at step s has written lines
    up to s itself.  On opening, lines after s are dropped: the resumed run writes them again.

    Args:
        path: the file; created if it is not there.
        start: step at which the run starts or resumes.
    """

    def __init__(self, path: Path, start: int = 0):
        self.path = path
        if path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= start:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a crash
            temporary = path.with_suffix(".tmp")
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())  # else a power cut after the rename may leave it empty
            os.replace(temporary, path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes a line; numbers that are not finite become null."""
        self.file.write(json.dumps(strict(line), allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; what a crash cut short is passed over."""
    out: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, dict) and isinstance(read.get("step"), int):
            out.append(read)
    return out


def strict(value: Any) -> Any:
    """A value as strict JSON knows it: scalars of torch and numpy as numbers, no NaN."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """A bar with loss, images/s, ETA and the share of time spent waiting for data.

    Args:
        enabled: "auto": a bar on a terminal, plain lines elsewhere; "off": nothing.
    """

    def __init__(self, total: int, start: int = 0, enabled: str = "auto"):
        self.total, self.start, self.enabled = total, start, enabled
        self.rate = 0.0  # images per second
        self.data_wait = 0.0  # share of time spent waiting for data
        self._recent: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=WINDOW)
        self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
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
        return self

    def __exit__(self, *args: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float, images: int, wait_seconds: float) -> None:
        """Step `step` is done; it had `images` images and waited so long for data."""
        now = time.monotonic()
        self._recent.append((now, images, wait_seconds))
        span = now - self._recent[0][0]
        later = list(self._recent)[1:]
        if span > 0:
            self.rate = sum(n for _, n, _ in later) / span
            self.data_wait = min(sum(w for *_, w in later) / span, 1.0)
        text = f"loss {loss:.4f}  {self.rate:,.0f} images/s  data wait {self.data_wait:.0%}"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif self.enabled == "auto" and (now - self._said > LINE_SECONDS or step == self.total):
            self._said = now
            left = (self.total - step) * span / max(len(later), 1)
            say(f"step {step}/{self.total}  {text}  {left:.0f} s left")

    def starving(self) -> bool:
        """Whether data come too late, now that the start, when nothing is ready, is past."""
        span = self._recent[-1][0] - self._recent[0][0]
        steady = span > 3 and (len(self._recent) == WINDOW or span > 60)
        return steady and self.enabled == "auto" and self.data_wait > STARVED

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.enabled == "auto":
            say(text)

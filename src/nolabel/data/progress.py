"""Shows what a command is doing: bars on a terminal, lines of text elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from nolabel.errors import visible

STATUS_SECONDS = 4.5  # seconds without output after which a command prints a status line
LONGER_SECONDS = 15.0  # the same after the first `FIRST_LINES` status lines
FIRST_LINES = 5

_phases: list[str] = []  # titles of what is being done, the innermost last
_bars = 0  # progress bars that are shown
_last = time.monotonic()  # time of the last output


def note_output() -> None:
    """Records that something was printed now."""
    global _last  # noqa: PLW0603
    _last = time.monotonic()


@contextlib.contextmanager
def phase(title: str) -> Iterator[None]:
    """Sets the title of what is done inside, for the status lines."""
    _phases.append(title)
    try:
        yield
    finally:
        _phases.remove(title)


@contextlib.contextmanager
def bar_shown() -> Iterator[None]:
    """Inside, a progress bar is shown, so no status lines are printed."""
    global _bars  # noqa: PLW0603
    _bars += 1
    try:
        yield
    finally:
        _bars -= 1
        note_output()


@contextlib.contextmanager
def status_lines(title: str) -> Iterator[None]:
    """Inside, a thread prints status lines on standard error if nothing else is printed.

    Args:
        title: what is done outside of any `phase`.
    """
    done = threading.Event()

    def report() -> None:
        began, lines = time.monotonic(), 0
        while not done.wait(0.5):
            pause = STATUS_SECONDS if lines < FIRST_LINES else LONGER_SECONDS
            if _bars or time.monotonic() - _last < pause:
                continue
            lines += 1
            _write(f"{_phases[-1] if _phases else title}: {time.monotonic() - began:.0f} s")

    note_output()
    thread = threading.Thread(target=report, name="nolabel-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _write(text: str) -> None:
    """Writes a line to standard error without Python's lock, which a fork could copy while held."""
    note_output()
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{visible(text)}\n".encode(errors="backslashreplace"))


@contextlib.contextmanager
def progress_bar(title: str, total: int, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr with count and remaining time; lines of text without a terminal.

    Args:
        title: text in front of the bar.
        total: number of items.
        enabled: False shows nothing.

    Yields:
        The function that advances the bar by n items.
    """
    if not enabled or os.environ.get("RANK", "0") != "0":
        yield lambda n: None
        return
    if not sys.stderr.isatty():
        lines = _Lines(title, total)
        with phase(title):
            yield lines.advance
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with bar_shown(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(visible(title)), total=total)
        yield lambda n: bar.advance(task, n)


class _Lines:
    """Progress as lines of text."""

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done, self.lines = title, total, 0, 0
        self.began = time.monotonic()

    def advance(self, n: int) -> None:
        """Adds n items; prints a line if the last one is some seconds old."""
        self.done += n
        now = time.monotonic()
        if not self.done or now - max(_last, self.began) < (
            STATUS_SECONDS if self.lines < FIRST_LINES else LONGER_SECONDS
        ):
            return
        self.lines += 1
        left = (now - self.began) * max(self.total - self.done, 0) / self.done
        _write(f"{self.title}: {self.done:,} of {self.total:,}, {left:.0f} s left")

"""What a command is doing: bars on a terminal, lines of text elsewhere, never long silence."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from nolabel.errors import visible

SILENCE = 4.5  # seconds without a word after which a command says what it is doing
LONG = 15.0  # seconds between such lines once it has said so several times
SEVERAL = 5

_phases: list[str] = []  # what is being done, the innermost last
_bars = 0  # bars that are on the terminal
_last = time.monotonic()  # when something was printed


def heard() -> None:
    """Notes that the user has just read something."""
    global _last  # noqa: PLW0603
    _last = time.monotonic()


@contextlib.contextmanager
def phase(title: str) -> Iterator[None]:
    """Names what is done inside, for the lines of `never_silent`."""
    _phases.append(title)
    try:
        yield
    finally:
        _phases.remove(title)


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Inside, a bar or a loop tells the user enough: `never_silent` says nothing."""
    global _bars  # noqa: PLW0603
    _bars += 1
    try:
        yield
    finally:
        _bars -= 1
        heard()


@contextlib.contextmanager
def never_silent(title: str) -> Iterator[None]:
    """Inside, a thread says on standard error what is being done, whenever nothing else does.

    Args:
        title: what is done where no `phase` says more.
    """
    done = threading.Event()

    def speak() -> None:
        began, lines = time.monotonic(), 0
        while not done.wait(0.5):
            pause = SILENCE if lines < SEVERAL else LONG
            if _bars or time.monotonic() - _last < pause:
                continue
            lines += 1
            _write(f"{_phases[-1] if _phases else title}: {time.monotonic() - began:.0f} s")

    heard()
    thread = threading.Thread(target=speak, name="nolabel-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _write(text: str) -> None:
    """A line on standard error past Python's lock, which a forked process could inherit closed."""
    heard()
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{visible(text)}\n".encode(errors="backslashreplace"))


@contextlib.contextmanager
def progress_bar(title: str, total: int, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr with count and remaining time, or lines where it is no terminal.

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
    with talking(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
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
            SILENCE if self.lines < SEVERAL else LONG
        ):
            return
        self.lines += 1
        left = (now - self.began) * max(self.total - self.done, 0) / self.done
        _write(f"{self.title}: {self.done:,} of {self.total:,}, {left:.0f} s left")

"""A progress bar for long work on data, shown on terminals only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(title: str, total: int, wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar with count, rate and remaining time on stderr, if that is a terminal; yields the
    function that moves it on."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda n: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(title), total=total)
        yield lambda n: bar.advance(task, n)

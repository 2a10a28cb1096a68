"""Lines for the user on standard error."""

from __future__ import annotations

import sys

from nolabel import distributed


def say(text: str) -> None:
    """A line for the user, on standard error so that standard output stays data; from the first
    process of a run alone."""
    if distributed.speaks():
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line on standard error from whichever process it concerns."""
    print(f"process {distributed.rank()}: {text}", file=sys.stderr, flush=True)

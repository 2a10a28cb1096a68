"""Messages to the user on standard error."""

from __future__ import annotations

import sys

from nolabel import distributed
from nolabel.data.progress import note_output
from nolabel.errors import visible


def say(text: str) -> None:
    """Prints a line on standard error, on rank 0 only. Standard output is for results."""
    if distributed.is_main():
        print(visible(text), file=sys.stderr, flush=True)
        note_output()


def warn(text: str) -> None:
    """Prints a line on standard error, on any rank, with the rank in front."""
    print(f"process {distributed.rank()}: {visible(text)}", file=sys.stderr, flush=True)

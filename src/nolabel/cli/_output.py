"""Printing: what comes from files is shown as text, whatever characters it holds."""

from __future__ import annotations

import sys

from nolabel.errors import visible


def write(text: object = "") -> None:
    """Prints a result on standard output; control characters are escaped."""
    print(visible(str(text)), flush=True)  # at once, in a pipe too


def write_error(text: object) -> None:
    """Prints a line on standard error; control characters are escaped."""
    print(visible(str(text)), file=sys.stderr)

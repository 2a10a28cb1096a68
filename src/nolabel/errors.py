"""The errors that users see.

Every message says which value was given, what is allowed and what to do. The command line prints it
without a traceback, and exits with the error's `exit_code`.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable


class NolabelError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1


class UsageError(NolabelError, ValueError):
    """The request itself is wrong: unknown name, impossible combination, missing folder."""

    exit_code = 2


class UntrustedCode(UsageError):
    """A file brings code that the user neither ran on this machine nor allowed to be executed."""


class DataError(NolabelError):
    """The data cannot be used: unreadable, too few images, too many bad files, no labels."""


class FileDamaged(NolabelError):
    """A checkpoint or encoder file is truncated, altered, or of another format."""


class GuardStop(NolabelError):
    """A guard stopped the run: the loss or the gradients stayed non-finite, or it collapsed."""

    exit_code = 3


class OutOfMemory(NolabelError):  # noqa: N818
    """A step needs more memory than the device has."""


class Stopped(NolabelError):
    """The run was asked to stop (SIGINT, SIGTERM); everything is saved and it can resume."""

    exit_code = 75


class BadImage(Exception):
    """One image cannot be used. Caught by the loader, which skips, counts and lists it."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)  # both arguments, so that it survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {visible(self.reason)}"


def none_readable(name: str, tried: int, first: BadImage | None) -> DataError:
    """The error for data of which no image can be read.

    Args:
        name: of the data.
        tried: images that were tried.
        first: why one of them cannot be read.
    """
    why = "" if first is None else f" First: {first}."
    return DataError(
        f"None of the {tried:,} image{'s'[: tried != 1]} tried of {name!r} can be read.{why} "
        "`nolabel scan` lists all of them."
    )


# Characters that a terminal obeys instead of showing them: control characters, and those that turn
# the direction of writing or separate lines.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Text that may hold names and values of other people's files, for a terminal.

    Control characters (except line feed and tab), marks of writing direction and undecodable bytes
    are escaped, so that a file name can neither colour, move nor clear anything.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(path: str) -> str:
    """A path that can be printed and saved, on one line: as `visible`, line feed and tab too."""
    return visible(path).replace("\n", "\\n").replace("\t", "\\t")


def command(*words: str) -> str:
    """A command line to print, quoted for a shell."""
    return shlex.join(printable(word) for word in words)


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(got, list(allowed), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def unknown(what: str, got: str, allowed: Iterable[str], hint: str = "") -> UsageError:
    """The error for an unknown name, with the nearest and all allowed names."""
    names = list(allowed)
    listed = ", ".join(names)
    return UsageError(
        f"Unknown {what} {got!r}.{did_you_mean(got, names)} Allowed: {listed}."
        + (f" {hint}" if hint else "")
    )

"""Reads small files that somebody else may have written: bounded size and depth, no exceptions."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from nolabel.errors import UsageError

_MAX_BYTES = 20_000_000


def require_file(path: Path, what: str) -> None:
    """Refuses a path that is missing or a folder.

    Args:
        path: that a user gave.
        what: is needed, for the message: "an encoder file".

    Raises:
        UsageError: it is no file.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{str(path)!r} {found}; {what} is needed.")


def read_text(path: Path, most: int = _MAX_BYTES) -> str | None:
    """The UTF-8 text of a file; None if it is missing, too large, no text, or no regular file.

    Args:
        path: of the file.
        most: bytes; a larger file is not read.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > most:
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def read_json(path: Path, most: int = _MAX_BYTES) -> Any:
    """The value in a JSON file; None if it cannot be read (`read_text`) or is damaged."""
    text = read_text(path, most)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None

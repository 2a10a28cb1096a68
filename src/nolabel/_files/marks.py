"""Marks of folders that nolabel wrote: only what it wrote itself is ever removed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nolabel._files.atomic import write_text
from nolabel._files.reading import read_json
from nolabel.errors import UsageError

MARK = ".nolabel"  # file in every folder whose content may be replaced


def write_mark(folder: Path, kind: str, **more: Any) -> None:
    """Writes the mark of a folder.

    Args:
        folder: exists.
        kind: what the folder holds: run, export, ...
        more: values of JSON's types that are kept with it, such as the files that were written.
    """
    text = json.dumps({"written by": "nolabel", "kind": kind, **more}, indent=1)
    write_text(Path(folder) / MARK, text + "\n")


def read_mark(folder: Path, kind: str) -> dict[str, Any] | None:
    """The content of a folder's mark; None if there is none of this kind."""
    about = read_json(Path(folder) / MARK)
    if not isinstance(about, dict) or about.get("kind") != kind:
        return None
    return about


def refuse_dangerous(folder: Path, data: Iterable[str], what: str) -> None:
    """Refuses to replace a folder that holds more than what is replaced.

    Args:
        folder: whose content is to be replaced.
        data: paths that must not lie in it.
        what: is to be done, for the message: "--overwrite".

    Raises:
        UsageError: it is the current folder, one above it, or one that holds the data.
    """
    inside = Path(os.path.realpath(folder))
    here = Path(os.path.realpath(os.curdir))
    if here == inside or inside in here.parents:
        raise UsageError(
            f"{what} would empty {folder}, which is the current folder or one above it. Choose "
            "another folder."
        )
    for path in data:
        place = Path(os.path.realpath(path))
        if place == inside or inside in place.parents:
            raise UsageError(
                f"{what} would empty {folder}, which holds the data {path}. Choose another folder."
            )


def remove_matching(folder: Path, patterns: Sequence[str]) -> None:
    """Removes the files of a folder that match, and sub-folders that are empty then.

    Everything else stays. Links are removed themselves; what they lead to stays.

    Args:
        folder: where to.
        patterns: relative paths, `*` and `?` in names stand for any letters.
    """
    parents: set[Path] = set()
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_file() or path.is_symlink():
                path.unlink()
                parents |= {p for p in path.parents if folder in p.parents}
    for parent in sorted(parents, key=lambda p: len(p.parts), reverse=True):
        with contextlib.suppress(OSError):  # something of the user's is in it
            parent.rmdir()

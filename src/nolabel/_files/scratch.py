"""Temporary folders that are removed at the end, or by the next call after a process was killed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from nolabel._files.abandoned import abandoned, temporary_name
from nolabel._files.marks import read_mark, write_mark


@contextlib.contextmanager
def scratch_folder(parent: Path, what: str) -> Iterator[Path]:
    """A new folder that is removed at the end; first, those that ended processes left are.

    Args:
        parent: exists; the folder is made in it, so that files can be renamed to their place.
        what: it is for, as part of its name.

    Raises:
        OSError: it cannot be made.
    """
    stem = f".nolabel-{what}"
    for old in abandoned(parent, stem):
        if read_mark(old, "scratch") is not None:
            shutil.rmtree(old, ignore_errors=True)
    folder = parent / temporary_name(stem)
    folder.mkdir()
    try:
        write_mark(folder, "scratch")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""Whether something can be written to a place, asked before the work whose result goes there."""

from __future__ import annotations

import os
from pathlib import Path

from nolabel.errors import UsageError, printable


def check_folder(path: str | os.PathLike[str], flag: str = "--out") -> None:
    """Checks that files can be written into a folder, which may not exist yet.

    Args:
        path: of the folder.
        flag: with which it was given, for the message; "" if with none.

    Raises:
        UsageError: it or a folder above it is a file, or may not be written to.
    """
    _check_place(Path(path), flag, "folder", printable(os.fspath(path)))


def check_file(path: str | os.PathLike[str], flag: str = "--out") -> None:
    """Checks that a file can be written, or replaced.

    Args:
        path: of the file.
        flag: with which it was given, for the message.

    Raises:
        UsageError: it is a folder; or a folder above it is a file, or may not be written to.
    """
    path = Path(path)
    shown = printable(os.fspath(path))
    if path.is_dir():
        raise UsageError(f"{flag} {shown} is a folder. Give a file, such as {shown}/NAME.")
    _check_place(path.parent, flag, "file", shown)


def _check_place(folder: Path, flag: str, what: str, shown: str) -> None:
    named = f"{flag} {shown}".strip()
    for place in (folder, *folder.parents):
        if not os.path.lexists(place):
            continue
        name = printable(str(place))
        if not place.is_dir():
            kind = "a link that leads nowhere" if place.is_symlink() else "a file"
            about = f"it is {kind}" if name == shown else f"{name} is {kind}"
            raise UsageError(
                f"{named} cannot be written: {about}, not a folder. Give another {what}."
            )
        if not os.access(place, os.W_OK | os.X_OK):
            raise UsageError(
                f"{named} cannot be written: no permission to write into {name}. Give "
                f"another {what}, or change the permissions."
            )
        return

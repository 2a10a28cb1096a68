"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nolabel._files.abandoned import remove_abandoned, temporary_name

_LOOKED: set[Path] = set()  # paths beside which this process has looked for files left behind


@contextlib.contextmanager
def replacement(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces it when the block ends without an error.

    After an error `path` is as it was, and the temporary file is gone. A process that is killed
    leaves it; the next one that writes `path` removes it.
    """
    path = Path(path)
    if path not in _LOOKED:
        _LOOKED.add(path)
        remove_abandoned(path.parent, f".{path.name}")
    temporary = path.with_name(temporary_name(f".{path.name}"))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` when the block ends without an error.

    It is written beside `path`, flushed to the disk, and renamed. After an error `path` is as it
    was, and the temporary file is gone. The permissions follow the user's umask.

    Args:
        path: of the file; its folder must exist.

    Raises:
        OSError: no such folder, no space, or no permission.
    """
    with replacement(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as UTF-8, completely or not at all (`atomic`)."""
    with atomic(path) as file:
        file.write(text.encode("utf-8"))


def usual_mode(path: str | os.PathLike[str]) -> int:
    """Permissions of a file that is created at `path`: what the umask or the folder's ACL gives.

    Libraries that write through private temporary files leave mode 0600, which colleagues cannot
    read. The mode is asked by creating an empty file, as the umask can only be read by setting it,
    for all threads.

    Args:
        path: of a file that does not exist; an empty file is left there.
    """
    with open(path, "wb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777

"""Names of temporary files, and the removal of those that a killed process left behind.

A name tells the process and the machine that made it. `kill -9` and power cuts leave such files;
the next process that writes to the same place removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import time
from pathlib import Path

ABANDONED = 60.0  # seconds since the last change: a process in another container is not seen
_NUMBER = itertools.count()  # threads of a process do not share a file


def temporary_name(stem: str) -> str:
    """A name that no other process and no other call gives."""
    return f"{stem}.{os.getpid()}-{_host()}-{next(_NUMBER)}.tmp"


def abandoned(folder: Path, stem: str) -> list[Path]:
    """What this machine's ended processes left in a folder under `temporary_name(stem)`."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)-([0-9a-f]{8})-\d+\.tmp")
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            name = pattern.fullmatch(path.name)
            if name and name[2] == _host() and not path.is_symlink() and _is_gone(int(name[1])):
                changed = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
                if time.time() - changed > ABANDONED:
                    found.append(path)
    return found


def remove_abandoned(folder: Path, stem: str) -> None:
    """Removes files, no folders, that ended processes left; errors are ignored.

    Args:
        folder: where to look.
        stem: of the names.
    """
    for path in abandoned(folder, stem):
        with contextlib.suppress(OSError):
            path.unlink()


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_gone(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's; or a number that no process has
        return False
    return False

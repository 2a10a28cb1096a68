"""A lock file: one process at a time writes into a folder, or a file."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

from nolabel._files.places import check_folder
from nolabel.errors import UsageError, printable

try:
    import fcntl
except ImportError:  # not on Windows: there, only the age of the file counts
    fcntl = None

LOCK = ".nolabel-lock"
REFRESH = 30.0  # seconds between renewals of the file's time
STALE = 300.0  # seconds after which the lock of another machine counts as left behind
_HELD: set[str] = set()  # lock files of this process: its own locks do not exclude each other


class Lock:
    """Holds a lock file until `release`; a context manager.

    The file names host, process and time. On one machine the system's lock on the file decides
    (`lockf`), which ends with the process however that ends; workers that are forked do not share
    it. A file that another machine wrote counts until it has not been renewed for `STALE` seconds.

    Args:
        path: of the lock file; its folder is created if it is missing, and removed again by
            `release` if it is still empty.
        what: what it protects, for the message: "the run in runs/dino".
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = Path(path), what
        self._fd: int | None = None
        self._made: list[Path] = []  # folders that were created, the innermost first
        self._ended = threading.Event()

    def acquire(self) -> Lock:
        """Takes the lock.

        Raises:
            UsageError: another process holds it (the message names it), or the folder cannot be
                written to.
        """
        folder = self.path.parent
        check_folder(folder, "")
        self._made = [p for p in (folder, *folder.parents) if not p.exists()]
        for _ in range(10):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # a process that ended removed the empty folder
                continue
            key = os.path.realpath(self.path)
            if key in _HELD or not _system_lock(fd):
                text = _read(fd)
                os.close(fd)
                raise self._refusal(text)
            if not _is_at(fd, self.path):  # its last holder removed the file that was opened
                os.close(fd)
                continue
            self._refuse_other_machine(fd)
            self._fd = fd
            _HELD.add(key)
            self._write()
            threading.Thread(target=self._renew, daemon=True).start()
            return self
        raise UsageError(f"Cannot lock {self.what}: {self.path} changes all the time. Try again.")

    def release(self) -> None:
        """Gives the lock back and removes its file; does nothing where it is not held."""
        if self._fd is None:
            return
        self._ended.set()
        with contextlib.suppress(OSError):
            self.path.unlink()
        for folder in self._made:
            with contextlib.suppress(OSError):  # not empty: it is in use
                folder.rmdir()
        _HELD.discard(os.path.realpath(self.path))
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _write(self) -> None:
        assert self._fd is not None  # noqa: S101
        about = {"host": socket.gethostname(), "process": os.getpid(), "since": _now()}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, (json.dumps(about) + "\n").encode(), 0)

    def _renew(self) -> None:
        while not self._ended.wait(REFRESH):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _refuse_other_machine(self, fd: int) -> None:
        text = _read(fd)
        age = time.time() - os.fstat(fd).st_mtime
        host = _about(text).get("host", "")
        if not host or (host == socket.gethostname() and fcntl is not None) or age > STALE:
            return
        os.close(fd)
        raise self._refusal(text)

    def _refusal(self, text: str) -> UsageError:
        about = _about(text)
        if not about:
            return UsageError(f"Another process is using {self.what}. Wait until it has ended.")
        host = about.get("host", "")
        on = "" if host == socket.gethostname() else f" on {host}"
        left = (
            f" If that machine is gone, wait {STALE / 60:.0f} minutes or delete {self.path}."
            if on
            else ""
        )
        return UsageError(
            f"Process {about.get('process', '?')}{on} has been using {self.what} since "
            f"{about.get('since', '?')}. Wait until it has ended, or write elsewhere.{left}"
        )


def _system_lock(fd: int) -> bool:
    """Takes the system's lock on an open file, if no other process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks: the content of the file decides
        return not isinstance(error, PermissionError)
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def _read(fd: int) -> str:
    return os.pread(fd, 4096, 0).decode("utf-8", "replace")


def _about(text: str) -> dict[str, str]:
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(about, dict):
        return {}
    return {str(k): printable(str(v)[:80]) for k, v in about.items()}


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")

"""Decides which user code may be executed: files that the user named, or allowed by a flag.

Trust belongs to the bytes of a file, not to its folder. When a user names a file, or gives
`--trust-code`, the SHA-256 of its bytes is recorded in the user's own state folder. A downloaded
run folder cannot write there. It is *not* enough that the original file still exists and is equal
to the copy: an archive that holds a run folder can hold that file as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_ALL: ContextVar[bool] = ContextVar("nolabel_trusted_code", default=False)


@contextlib.contextmanager
def trusted_code(trust: bool = True) -> Iterator[None]:
    """In this context, code in run folders and beside encoder files is trusted and recorded.

    Args:
        trust: False changes nothing: the state outside applies.
    """
    token = _ALL.set(_ALL.get() or trust)
    try:
        yield
    finally:
        _ALL.reset(token)


def state_folder() -> Path:
    """Folder of the trust records: $NOLABEL_STATE, else `nolabel` in the user's state folder."""
    named = os.environ.get("NOLABEL_STATE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG standard says that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local/state") / "nolabel"


def is_trusted(sha256: str) -> bool:
    """Whether bytes of this SHA-256 may be executed."""
    if _ALL.get():
        return True
    try:
        return (state_folder() / "trusted-code" / sha256).is_file()
    except (OSError, RuntimeError):  # no home folder
        return False


def remember(sha256: str, origin: Path) -> None:
    """Records that the user executed these bytes.

    If the state folder cannot be written, nothing is recorded and the user has to give
    `--trust-code` again.

    Args:
        sha256: of the file, 64 hexadecimal digits.
        origin: path of the file; for people who look into the state folder.
    """
    with contextlib.suppress(OSError, RuntimeError):
        folder = state_folder() / "trusted-code"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / sha256
        if not path.exists():
            path.write_text(f"{origin}\n", encoding="utf-8", errors="backslashreplace")

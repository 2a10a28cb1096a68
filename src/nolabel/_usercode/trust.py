"""Which code of users may be executed: what was named on this machine by the user, or allowed.

Trust is in bytes, not in folders. When a user names a file, or says `--trust-code`, the SHA-256 of
its bytes is remembered in the user's own state folder. A run's folder cannot write there, and to
execute the same bytes again gives nobody anything new. That the file named as the original still
exists and is equal is *not* enough: a folder that was unpacked can bring that file as well.
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
    """Inside, code in folders of runs and beside encoder files is trusted, and remembered.

    Args:
        trust: False changes nothing: what holds outside holds inside.
    """
    token = _ALL.set(_ALL.get() or trust)
    try:
        yield
    finally:
        _ALL.reset(token)


def state_folder() -> Path:
    """Where trust is remembered: $NOLABEL_STATE, else `nolabel` in the user's state folder."""
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
    """Remembers that the user executed these bytes.

    Where nothing can be written, nothing is remembered, and `--trust-code` has to be given again.

    Args:
        sha256: of the file, 64 hexadecimal digits.
        origin: where the file lay; for people who look into the state folder.
    """
    with contextlib.suppress(OSError, RuntimeError):
        folder = state_folder() / "trusted-code"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / sha256
        if not path.exists():
            path.write_text(f"{origin}\n", encoding="utf-8", errors="backslashreplace")

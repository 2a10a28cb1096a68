"""Arrays that are made once and kept on disk until the file that they come from changes.

Lists of paths, indices of shards and times of video frames lie in the user's cache folder as .npz
files, one for each source file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_CACHE_FORMAT = 1

Key = tuple[str, int, int]  # absolute path, size in bytes, time of change in nanoseconds


def cache_folder() -> Path:
    """Folder of lists and downloads: $NOLABEL_CACHE, else `nolabel` in the user's cache."""
    chosen = os.environ.get("NOLABEL_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "nolabel"


def fingerprint(path: str | os.PathLike[str]) -> Key:
    """What changes when a file does. Raises OSError when there is no such file."""
    info = os.stat(path)
    return os.path.abspath(path), info.st_size, info.st_mtime_ns


def load(kind: str, key: Key) -> dict[str, np.ndarray] | None:
    """What `store` wrote for this kind and `fingerprint`; None when there is nothing, when the
    source file has changed, or when the cached file is damaged."""
    arrays = load_arrays(_cache_file(kind, key))
    stored = None if arrays is None else arrays.pop("key", None)
    return arrays if stored is not None and stored.tobytes() == _key_bytes(kind, key) else None


def store(kind: str, key: Key, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays under a key, atomically. Where nothing can be written, nothing is cached."""
    path, temporary = _cache_file(kind, key), ""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(descriptor, "wb") as file:
                key_array = np.frombuffer(_key_bytes(kind, key), np.uint8)
                named: dict[str, Any] = {"key": key_array, **arrays}
                np.savez(file, **named)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file by name; None when it is missing or damaged."""
    try:
        with (
            open(path, "rb") as raw,  # np.load leaves damaged files open
            np.load(raw, allow_pickle=False) as file,
        ):
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _key_bytes(kind: str, key: Key) -> bytes:
    return json.dumps([_CACHE_FORMAT, kind, list(key)], sort_keys=True).encode()


def _cache_file(kind: str, key: Key) -> Path:
    # Named by the source file's path alone: a list that changed replaces its older version.
    digest = hashlib.sha256(os.fsencode(key[0])).hexdigest()[:24]
    return cache_folder() / f"{kind}-{digest}.npz"

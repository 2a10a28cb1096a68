"""On-disk cache of arrays that were computed from a file, valid until that file changes.

Lists of paths, indices of tar shards and time stamps of video frames are .npz files in the user's
cache folder, one for each source file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nolabel._files import replacement

_CACHE_FORMAT = 2
_SAMPLED, _BLOCK = 16, 16_384  # places of a large file that are read beside its start, and bytes

Key = tuple[str, int, int]  # absolute path, size in bytes, digest of what else tells files apart


def cache_folder() -> Path:
    """Cache folder: $NOLABEL_CACHE, else `nolabel` in $XDG_CACHE_HOME or ~/.cache.

    Without a home folder it is a folder of this user in the system's temporary folder.
    """
    override = os.environ.get("NOLABEL_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification requires that a relative path is ignored.
    if os.path.isabs(base):
        return Path(base) / "nolabel"
    try:
        return Path.home() / ".cache" / "nolabel"
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(tempfile.gettempdir()) / f"nolabel-cache-{os.getuid()}"


def fingerprint(path: str | os.PathLike[str]) -> Key:
    """Cache key of a large file: it changes with size, modification time, and some of the content.

    Unpacked and synchronised files may have equal sizes and times, so the two ends and blocks
    between them are read.

    Raises:
        OSError: there is no such file.
    """
    info = os.stat(path)
    digest = hashlib.sha256(str(info.st_mtime_ns).encode())
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb", buffering=0) as file:
            for part in range(_SAMPLED + 1):
                file.seek(max(info.st_size - _BLOCK, 0) * part // _SAMPLED)
                digest.update(file.read(_BLOCK))
    return os.path.abspath(path), info.st_size, int.from_bytes(digest.digest()[:8])


def content_key(path: str | os.PathLike[str]) -> Key:
    """Cache key of a file that is read as a whole anyway: it changes with the content alone.

    Unpacked files may have fixed times, and an edit may keep the size.

    Raises:
        OSError: there is no such file.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return os.path.abspath(path), os.stat(path).st_size, int.from_bytes(digest[:8])


def load(kind: str, key: Key) -> dict[str, np.ndarray] | None:
    """Reads cached arrays.

    Args:
        kind: name of the cache, such as "shard".
        key: `fingerprint` of the source file.

    Returns:
        Name -> array, as given to `store`; None when nothing is cached, when the source file has
        changed, or when the cached file is damaged.
    """
    arrays = load_arrays(_cache_file(kind, key))
    stored = None if arrays is None else arrays.pop("key", None)
    return arrays if stored is not None and stored.tobytes() == _key_bytes(kind, key) else None


def store(kind: str, key: Key, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to the cache, atomically: to a temporary file, which is then renamed.

    A cache folder that cannot be written to is no error; nothing is cached then.

    Args:
        kind: name of the cache, such as "shard".
        key: `fingerprint` of the source file.
        arrays: name -> array; the name "key" is reserved.
    """
    path = _cache_file(kind, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacement(path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                key_array = np.frombuffer(_key_bytes(kind, key), np.uint8)
                named: dict[str, Any] = {"key": key_array, **arrays}
                np.savez(file, **named)


def load_arrays(
    path: str | os.PathLike[str], most: int | None = None
) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file by name; None when it is missing or damaged.

    Args:
        path: of the file; from a pipe or a device nothing is read.
        most: bytes of all arrays; a file that claims more counts as damaged.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as raw:  # np.load does not close a damaged file
            with zipfile.ZipFile(raw) as archive:
                claimed = sum(member.file_size for member in archive.infolist())
            if most is not None and claimed > most:
                return None
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except Exception:  # zipfile, zlib and NumPy's header parser raise any type for damaged files
        return None


def _key_bytes(kind: str, key: Key) -> bytes:
    return json.dumps([_CACHE_FORMAT, kind, list(key)], sort_keys=True).encode()


def _cache_file(kind: str, key: Key) -> Path:
    # Named by the source file's path only: the arrays of a changed file replace the older ones.
    digest = hashlib.sha256(os.fsencode(key[0])).hexdigest()[:24]
    return cache_folder() / f"{kind}-{digest}.npz"

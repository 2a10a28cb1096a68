"""Very many strings in little memory, and lists that are made once and kept.

A million paths as Python strings cost 150 MB, and forked workers copy them page by page, because
reading a string writes its reference count.  Packed into one block of bytes they cost what their
letters cost, stay shared, and load from disk without being parsed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_CACHE_FORMAT = 1


class Strings:
    """A fixed list of strings: one block of bytes and the place where each one ends.

    Bytes of file names that are no UTF-8 survive (they are Python's surrogates).
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends  # uint8 [bytes], int64 [N]

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """Packs them."""
        parts = [s.encode("utf-8", "surrogateescape") for s in strings]
        lengths = np.fromiter((len(p) for p in parts), np.int64, len(parts))
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def among(cls, arrays: Mapping[str, np.ndarray], name: str) -> Strings:
        """Those that `arrays` put there under this name."""
        return cls(arrays[f"{name}.blob"], arrays[f"{name}.ends"])

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """As named arrays, to be kept."""
        return {f"{name}.blob": self.blob, f"{name}.ends": self.ends}

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{i} of {len(self)} strings")
        i %= len(self)
        start = int(self.ends[i - 1]) if i else 0
        return self.blob[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def number(words: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes, sorted as numbers if all are whole numbers and else as names; int64 [N]."""
    distinct = set(words)
    whole = all(w.lstrip("-").isdecimal() for w in distinct)
    classes = sorted(distinct, key=int) if whole else sorted(distinct)
    index = {word: i for i, word in enumerate(classes)}
    return tuple(classes), np.fromiter((index[w] for w in words), np.int64, len(words))


def cache_folder() -> Path:
    """Where lists and downloads are kept: $NOLABEL_CACHE, else `nolabel` in the user's cache."""
    told = os.environ.get("NOLABEL_CACHE")
    if told:
        return Path(told)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "nolabel"


def fingerprint(path: str | os.PathLike[str]) -> list[Any]:
    """What changes when a file does: its place, size in bytes and time of change."""
    info = os.stat(path)
    return [os.path.abspath(path), info.st_size, info.st_mtime_ns]


def kept(kind: str, key: list[Any]) -> dict[str, np.ndarray] | None:
    """What `keep` wrote for this `fingerprint`; None when there is nothing, or not whole."""
    arrays = whole_arrays(_file_of(kind, key))
    own = None if arrays is None else arrays.pop("key", None)
    return arrays if own is not None and own.tobytes() == _text(kind, key) else None


def whole_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file; None when it is not there, or not whole."""
    try:
        with (
            open(path, "rb") as raw,  # np.load leaves damaged files open
            np.load(raw, allow_pickle=False) as file,
        ):
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def keep(kind: str, key: list[Any], arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays under a key, atomically.  Without a place to write, nothing is kept."""
    path, temporary = _file_of(kind, key), ""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(descriptor, "wb") as file:
                own: dict[str, Any] = {"key": np.frombuffer(_text(kind, key), np.uint8), **arrays}
                np.savez(file, **own)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _text(kind: str, key: list[Any]) -> bytes:
    return json.dumps([_CACHE_FORMAT, kind, key], sort_keys=True).encode()


def _file_of(kind: str, key: list[Any]) -> Path:
    # One file a place: a list that changed replaces its older self.
    digest = hashlib.sha256(os.fsencode(key[0])).hexdigest()[:24]
    return cache_folder() / f"{kind}-{digest}.npz"

"""Compact, fork-safe storage for long lists of strings.

A million paths as Python strings take 150 MB, and forked workers soon have their own copy: reading
a string changes its reference count, which triggers copy-on-write. Packed into one NumPy array
they take one byte a character, stay shared among workers, and load from disk without parsing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np


class StringTable:
    """A fixed list of N strings: one block of bytes and the offset at which each one ends.

    File names that are not valid UTF-8 are kept (`surrogateescape`).

    Args:
        blob: uint8 [bytes], all strings one after the other.
        ends: int64 [N], ascending.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> StringTable:
        """Packs strings into a table."""
        parts = [s.encode("utf-8", "surrogateescape") for s in strings]
        lengths = np.fromiter((len(p) for p in parts), np.int64, len(parts))
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> StringTable:
        """Reads a table back from the arrays that `to_arrays(name)` returned."""
        return cls(arrays[f"{name}.blob"], arrays[f"{name}.ends"])

    def to_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The table as two arrays for the cache, `NAME.blob` and `NAME.ends`."""
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

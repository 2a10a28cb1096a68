"""Very many strings in little memory.

A million paths as Python strings cost 150 MB, and forked workers copy them page by page, because
reading a string writes its reference count. Packed into one block of bytes they cost what their
letters cost, stay shared, and load from disk without being parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np


class StringTable:
    """A fixed list of N strings: one block of bytes and the offset at which each one ends.

    Bytes of file names that are no UTF-8 survive (they are Python's surrogates).

    Args:
        blob: uint8 [bytes], all strings one after the other.
        ends: int64 [N], ascending.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> StringTable:
        """Packs strings."""
        parts = [s.encode("utf-8", "surrogateescape") for s in strings]
        lengths = np.fromiter((len(p) for p in parts), np.int64, len(parts))
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> StringTable:
        """The table that `to_arrays(name)` put among these arrays."""
        return cls(arrays[f"{name}.blob"], arrays[f"{name}.ends"])

    def to_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The table as two named arrays, for the cache."""
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


def encode_labels(words: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes, sorted as numbers if all are whole numbers and else as names; int64 [N]."""
    distinct = set(words)
    whole = all(w.lstrip("-").isdecimal() for w in distinct)
    classes = sorted(distinct, key=int) if whole else sorted(distinct)
    index = {word: i for i, word in enumerate(classes)}
    return tuple(classes), np.fromiter((index[w] for w in words), np.int64, len(words))

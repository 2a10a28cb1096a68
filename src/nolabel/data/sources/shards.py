"""Tar shards in WebDataset's layout, with random access through an index of byte offsets.

Which members form a sample, `_tar_index` says. Nothing is unpickled and nothing is extracted to
disk. The index of a tar is cached until its size or modification time changes.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
import threading
from collections import OrderedDict

import numpy as np

from nolabel.data import _cache
from nolabel.data._strings import StringTable
from nolabel.data.labels import encode_names, fill_groups, read_labels
from nolabel.data.source import Source
from nolabel.data.sources._bands import read_bands
from nolabel.data.sources._decode import SUFFIXES
from nolabel.data.sources._tar_index import NAMES, build_index
from nolabel.errors import BadImage, DataError, UsageError, printable
from nolabel.types import Sample

BLOCK = 1024  # consecutive samples that are read at about the same time
_MAX_OPEN = 64  # shards open at the same time in one process
_CACHE_KIND = "shard 2"  # name of the cache; change it when the index changes
_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Shards(Source):
    """The samples of one or more tar files, in the order of the files and of their members.

    Labels, groups and domains, from members `.cls`, `.group` and `.domain`, are used only if every
    sample has one.

    Args:
        pattern: a tar, a pattern such as `shards/*.tar`, or one with braces,
            `shards/{000..127}.tar` or `{train,extra}.tar`.

    Raises:
        UsageError: no such file, or a compressed one.
        DataError: a file is not a tar, or none of them holds an image.
    """

    has_files = True
    block = BLOCK  # training shuffles blocks of samples, so that the disk is read in large pieces

    def __init__(self, pattern: str | os.PathLike[str]):
        self.name = os.fspath(pattern)
        self.files = tuple(os.path.abspath(f) for f in expand(self.name))
        parts = [_load_index(file) for file in self.files]
        counts = [len(p["image"]) for p in parts]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not self.starts[-1]:
            raise DataError(
                f"No images in {self.name!r}. Members count as images by their suffix: "
                f"{' '.join(sorted(SUFFIXES))}."
            )
        self.images_at = np.concatenate([p["image"] for p in parts])  # int64 [N, 2]: offset, size
        self.texts_at = np.concatenate([p["txt"] for p in parts])  # the same; size -1: no text
        self.members = [StringTable.from_arrays(p, "member") for p in parts]
        names = {
            kind: [name for p in parts for name in StringTable.from_arrays(p, kind)]
            for kind in NAMES
        }
        notes: list[str] = []
        if any(names["cls"]):
            found = read_labels(names["cls"], lambda i: f"{printable(self.path(i))} (.cls)")
            self.classes, self.labels, self.unlabelled, _ = found
            notes += found.notes
        else:
            self.unlabelled = "Labels are members with the suffix .cls; there are none."
        if any(names["group"]):
            self.group_names, self.groups = encode_names(fill_groups(names["group"]))
        if all(names["domain"]):
            self.domain_names, self.domains = encode_names(names["domain"])
        notes += (
            f"{printable(file)}: {note}"
            for file, part in zip(self.files, parts, strict=True)
            for note in StringTable.from_arrays(part, "notes")
        )
        self.notes = tuple(notes)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def path(self, i: int, /) -> str:
        """The shard and the member, as `shards/000.tar::cats/001.jpg`."""
        shard = self._shard(i)
        return f"{self.files[shard]}::{self.members[shard][i - int(self.starts[shard])]}"

    def read_bytes(self, i: int, /) -> bytes:
        """The encoded file of image i, unchanged. Raises OSError or BadImage."""
        return self._bytes(i, self.images_at[i])

    def size_in_bytes(self, i: int, /) -> int:
        """Size of the file of image i."""
        return int(self.images_at[i, 1])

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Sample i, decoded, with its text. Raises BadImage."""
        try:
            image = read_bands(
                self.read_bytes(i), self.channels, sufficient_pixels=sufficient_pixels
            )
            text = self.read_text(i)
        except BadImage as error:
            raise BadImage(self.path(i), error.reason) from None
        except OSError as error:
            raise BadImage(self.path(i), f"cannot be read ({error.strerror})") from None
        return Sample(image=image, label=self.label(i), text=text)

    def read_text(self, i: int, /) -> str | None:
        """The text of sample i, None if it has none. Raises OSError or BadImage."""
        if self.texts_at[i, 1] < 0:
            return None
        return self._bytes(i, self.texts_at[i]).decode("utf-8", "replace").strip()

    def _shard(self, i: int) -> int:
        return int(np.searchsorted(self.starts, i, side="right")) - 1

    def _bytes(self, i: int, location: np.ndarray) -> bytes:
        """Reads a member of sample i; `location` is int64 [2], its offset and size."""
        offset, size = int(location[0]), int(location[1])
        # pread does not use the file position, so that forked workers may share the descriptor.
        # The lock prevents one thread from closing the file that another one reads.
        with self._lock:
            descriptor = self._descriptor(self._shard(i))
            # A header may claim any size, and pread allocates it first.
            whole = offset + size <= os.fstat(descriptor).st_size
            data = os.pread(descriptor, size, offset) if whole else b""
        if len(data) < size:
            raise BadImage(self.path(i), "the shard ends too early")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(self.files[shard], os.O_RDONLY)
        return self._open[shard]

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        # File descriptors and locks are not valid in another process.
        self.__dict__.update(state, _open=OrderedDict(), _lock=threading.Lock())

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():  # absent if __init__ failed
            os.close(descriptor)


def is_shards(text: str) -> bool:
    """Whether a string names tar shards: whether it ends like a tar, compressed or not."""
    return text.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst"))


def expand(pattern: str) -> list[str]:
    """The files that a pattern with braces and wildcards names, sorted within each wildcard.

    Raises:
        UsageError: a file is missing, no file matches, or they are compressed.
    """
    if not pattern.endswith(".tar"):
        raise UsageError(
            f"{pattern!r} is compressed, and a compressed tar has no random access. "
            "Decompress it first (images hardly compress anyway)."
        )
    files: list[str] = []
    for name in expand_braces(pattern):
        wildcard = glob.has_magic(name) and not os.path.exists(name)
        files += sorted(glob.glob(name)) if wildcard else [name]
    missing = [f for f in files if not os.path.isfile(f)]
    if missing or not files:
        what = f"{len(missing)} of {len(files)} shards are missing" if files else "no shard matches"
        first = f", the first: {missing[0]!r}" if missing else ""
        raise UsageError(
            f"{pattern!r}: {what}{first}. Check the name, and put the pattern into quotes."
        )
    return files


def expand_braces(pattern: str) -> list[str]:
    """Expands braces as a shell does: `a{00..02}` -> a00, a01, a02; `{x,y}` -> x, y.

    Several braces give every combination.
    """
    pieces = _BRACES.split(pattern)
    choices: list[list[str]] = []
    for i, piece in enumerate(pieces):
        span = _RANGE.fullmatch(piece)
        if i % 2 == 0:
            choices.append([piece])
        elif span:
            first, last, width = int(span[1]), int(span[2]), len(span[1])
            choices.append([f"{n:0{width}}" for n in range(first, last + 1)])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in itertools.product(*choices)]


def _load_index(file: str) -> dict[str, np.ndarray]:
    try:
        key = _cache.fingerprint(file)
        arrays = _cache.load(_CACHE_KIND, key)
        if arrays is None:
            arrays = build_index(file)
            _cache.store(_CACHE_KIND, key, arrays)
    except tarfile.TarError as error:
        raise DataError(f"{file!r} is not a readable tar file ({error}).") from None
    except OSError as error:
        raise DataError(f"Cannot read {file!r}: {error.strerror or error}.") from None
    return arrays

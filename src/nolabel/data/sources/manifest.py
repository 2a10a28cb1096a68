"""Lists of image files: plain text files of paths, and tables (CSV, TSV, Parquet).

A table has the column `path` and optionally `label`, `text`, `group` and `domain`; other columns
are ignored. Paths are relative to the folder of the list.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator

import numpy as np

from nolabel.data import _cache
from nolabel.data._strings import StringTable, encode_labels
from nolabel.data.source import Source
from nolabel.data.sources._bands import read_bands
from nolabel.data.sources._decode import read_end
from nolabel.errors import DataError, UsageError, did_you_mean
from nolabel.types import Sample

LISTS = (".txt", ".lst", ".list")
TABLES = (".csv", ".tsv", ".parquet", ".pq")
_CACHE_KIND = "manifest 3"  # name of the cache; change it when the cached arrays change
COLUMNS = ("path", "label", "text", "group", "domain")


class Manifest(Source):
    """The images that a file lists.

    A column is used only if every row has a value. `labels`, int64 [N], are indices into the sorted
    values of the column `label` (in numeric order if all are integers); `groups` and `domains` come
    in the same way from the columns `group` (same patient, same video) and `domain` (camera,
    style). Of `text`, single values may be empty.

    The parsed file is cached until its size or modification time changes.

    Args:
        file: path of the list or table.
        channels: number of channels C of the images.

    Raises:
        DataError: the file lists no image, cannot be read, or has an incomplete row.
        UsageError: a table without the column `path`; or Parquet without pyarrow.
    """

    supports_draft = True
    has_files = True

    def __init__(self, file: str | os.PathLike[str], channels: int = 3):
        self.name, self.channels = os.fspath(file), channels
        self.folder = os.path.dirname(os.path.abspath(self.name))
        try:
            key = _cache.fingerprint(self.name)
            arrays = _cache.load(_CACHE_KIND, key)
            if arrays is None:
                arrays = _to_arrays(_read_columns(self.name))
                _cache.store(_CACHE_KIND, key, arrays)
        except OSError as error:
            raise DataError(f"Cannot read {self.name!r}: {error.strerror or error}.") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{self.name!r} is not a readable text file ({error}). Save it as UTF-8."
            ) from None
        self.paths = StringTable.from_arrays(arrays, "path")
        if not len(self.paths):
            raise DataError(f"{self.name!r} lists no image. Give one path a line.")
        self.texts = StringTable.from_arrays(arrays, "text") if "text.ends" in arrays else None
        self.labels = arrays.get("labels")
        self.classes = (
            tuple(StringTable.from_arrays(arrays, "classes")) if "classes.ends" in arrays else ()
        )
        self.groups = arrays.get("groups")
        if self.groups is not None:
            self.group_names = StringTable.from_arrays(arrays, "groups_of")
        self.domains = arrays.get("domains")
        self.domain_names = (
            tuple(StringTable.from_arrays(arrays, "domains_of"))
            if "domains_of.ends" in arrays
            else ()
        )

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int, /) -> str:
        """Absolute path of image i."""
        return os.path.join(self.folder, self.paths[i])

    def read_bytes(self, i: int, /) -> bytes:
        """The encoded file of image i, unchanged. Raises OSError."""
        with open(self.path(i), "rb") as file:
            return file.read()

    def size_in_bytes(self, i: int, /) -> int:
        """Size of the file of image i. Raises OSError."""
        return os.path.getsize(self.path(i))

    def read_end(self, i: int, count: int, /) -> bytes:
        """The last `count` bytes of the file of image i. Raises OSError."""
        return read_end(self.path(i), count)

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, decoded, with its text. Raises BadImage."""
        image = read_bands(self.path(i), self.channels, sufficient_pixels=sufficient_pixels)
        return Sample(image=image, label=self.label(i), text=self.read_text(i))

    def read_text(self, i: int, /) -> str | None:
        """The text of image i; None without the column `text`."""
        return None if self.texts is None else self.texts[i]


def is_manifest(path: str) -> bool:
    """Whether a file's suffix is that of a list or a table."""
    return os.path.splitext(path)[1].lower() in (*LISTS, *TABLES)


def _read_columns(file: str) -> dict[str, list[str]]:
    """Column name -> values, all of one length."""
    suffix = os.path.splitext(file)[1].lower()
    if suffix in LISTS:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            return {"path": [line.strip() for line in lines if line.strip()]}
    if suffix in (".parquet", ".pq"):
        return _read_parquet(file)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",")
        return _read_rows(file, rows)


def _read_rows(file: str, rows: Iterator[list[str]]) -> dict[str, list[str]]:
    header = [name.strip().lower() for name in next(rows, [])]
    positions = _column_positions(file, header)
    out: dict[str, list[str]] = {name: [] for name in positions}
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(
                f"{file!r}, row {number}: {len(row)} fields where the header has {len(header)}. "
                "Put fields that hold a comma into double quotes."
            )
        for name, i in positions.items():
            out[name].append(row[i].strip())
        if not out["path"][-1]:
            raise DataError(f"{file!r}, row {number}: the path is empty.")
    return out


def _column_positions(file: str, header: list[str]) -> dict[str, int]:
    """Name of a known column -> its position in the table."""
    if "path" not in header:
        raise UsageError(
            f"{file!r} has no column 'path'.{did_you_mean('path', header)} Its columns: "
            f"{', '.join(header) or 'none'}. The first row must name the columns: path, and "
            "optionally label, text, group, domain."
        )
    return {name: header.index(name) for name in COLUMNS if name in header}


def _read_parquet(file: str) -> dict[str, list[str]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UsageError(
            f"Reading {file!r} needs pyarrow: pip install 'nolabel[parquet]', or save it as CSV."
        ) from None
    import pyarrow

    try:
        positions = _column_positions(file, list(parquet.read_schema(file).names))
        table = parquet.read_table(file, columns=list(positions))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file!r} is not a readable Parquet file ({error}).") from None
    out: dict[str, list[str]] = {}
    for name in positions:
        values: list[object] = table.column(name).to_pylist()
        if name == "path" and not all(isinstance(v, str) and v for v in values):
            raise DataError(f"{file!r}: the column 'path' must have a string in every row.")
        out[name] = ["" if v is None else str(v) for v in values]
    return out


def _to_arrays(columns: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """The columns as arrays for the cache; labels, groups and domains as int64 [N]."""
    out: dict[str, np.ndarray] = {}
    for name in ("path", "text"):
        if name in columns:
            out |= StringTable.from_strings(columns[name]).to_arrays(name)
    for name, numbers in (("label", "labels"), ("group", "groups"), ("domain", "domains")):
        values = columns.get(name)
        if not values or not all(values):
            continue
        distinct, out[numbers] = encode_labels(values)
        if name == "label":
            out |= StringTable.from_strings(distinct).to_arrays("classes")
        else:
            out |= StringTable.from_strings(distinct).to_arrays(f"{numbers}_of")
    return out

"""Lists of image files: plain text files of paths, and tables (CSV, TSV, Parquet).

A table has the column `path` and optionally `label`, `text`, `group` and `domain`; other columns
are ignored. Paths are relative to the folder of the list.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator
from unicodedata import normalize

import numpy as np

from nolabel.data import _cache
from nolabel.data._strings import StringTable
from nolabel.data.labels import MISSING, encode_names, fill_groups, read_labels
from nolabel.data.source import Source
from nolabel.data.sources._bands import read_bands
from nolabel.data.sources._decode import read_end
from nolabel.errors import BadImage, DataError, UsageError, did_you_mean
from nolabel.types import Sample

LISTS = (".txt", ".lst", ".list")
TABLES = (".csv", ".tsv", ".parquet", ".pq")
_MAX_FIELD = 1 << 24  # characters of a field of a table
_MAX_LINES = 200  # lines of a field
_CACHE_KIND = "manifest 3"  # name of the cache; change it when the cached arrays change
COLUMNS = ("path", "label", "text", "group", "domain")


class Manifest(Source):
    """The images that a file lists.

    `labels`, int64 [N], are indices into the sorted values of the column `label` (in numeric order
    if all are integers), if every row has one (`nolabel.data.labels`); `groups` and `domains` come
    in the same way from the columns `group` (same patient, same video) and `domain` (camera,
    style). A row without group is a group of its own; `domain` needs a value in every row. Of
    `text`, single values may be empty.

    The parsed file is cached until its content changes.

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
            key = _cache.content_key(self.name)
            arrays = _cache.load(_CACHE_KIND, key)
            if arrays is None:
                arrays = _to_arrays(_read_columns(self.name))
                _cache.store(_CACHE_KIND, key, arrays)
        except OSError as error:
            raise DataError(f"Cannot read {self.name!r}: {error.strerror or error}.") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name!r} is not a readable text file ({error}). Save it as UTF-8."
            ) from None
        except csv.Error as error:
            raise DataError(f"{self.name!r} is not a readable table ({error}).") from None
        self.paths = StringTable.from_arrays(arrays, "path")
        if not len(self.paths):
            raise DataError(f"{self.name!r} lists no image. Give one path a line.")
        self._spelling = _find_spelling(self.paths, self.folder)
        self.texts = StringTable.from_arrays(arrays, "text") if "text.ends" in arrays else None
        self.notes = tuple(StringTable.from_arrays(arrays, "notes"))
        if self._spelling:
            self.notes += (f"{self.name}: {_SPELLINGS[self._spelling]}",)
        self.unlabelled = "".join(StringTable.from_arrays(arrays, "unlabelled"))
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
        return os.path.join(self.folder, _respell(self.paths[i], self._spelling))

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
        try:
            image = read_bands(self.path(i), self.channels, sufficient_pixels=sufficient_pixels)
        except BadImage as error:
            raise BadImage(error.path, error.reason + _hint(self.paths[i], error.reason)) from None
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
    with _long_fields(), open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",")
        return _read_rows(file, rows)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Allows captions of up to `_MAX_FIELD` characters; the limit is the process's."""
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


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
        _check_lines(file, number, row)
        for name, i in positions.items():
            out[name].append(row[i].strip())
        if not out["path"][-1]:
            raise DataError(f"{file!r}, row {number}: the path is empty.")
    return out


def _check_lines(file: str, number: int, row: list[str]) -> None:
    """Refuses a row that holds the rest of the table because a quote is not closed."""
    for field in row:
        lines = field.count("\n")
        if lines > _MAX_LINES:
            raise DataError(
                f"{file!r}, row {number}: a field goes over {lines:,} lines and begins with "
                f"{field[:40]!r}. Is a closing double quote missing?"
            )


def _column_positions(file: str, header: list[str]) -> dict[str, int]:
    """Name of a known column -> its position in the table."""
    if "path" not in header:
        raise UsageError(
            f"{file!r} has no column 'path'.{did_you_mean('path', header)} Its columns: "
            f"{', '.join(header) or 'none'}. The first row must name the columns: path, and "
            "optionally label, text, group, domain."
        )
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if twice:
        raise UsageError(
            f"{file!r} has the column {twice[0]!r} {header.count(twice[0])} times. Rename all but "
            "the one that counts."
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
        names: list[str] = list(parquet.read_schema(file).names)
        positions = _column_positions(file, [name.strip().lower() for name in names])
        table = parquet.read_table(file, columns=[names[i] for i in positions.values()])
    except pyarrow.ArrowException as error:
        raise DataError(f"{file!r} is not a readable Parquet file ({error}).") from None
    out: dict[str, list[str]] = {}
    for name, i in positions.items():
        values: list[object] = table.column(names[i]).to_pylist()
        if name == "path" and not all(isinstance(v, str) and v for v in values):
            raise DataError(f"{file!r}: the column 'path' must have a string in every row.")
        out[name] = ["" if v is None else clean_text(v) for v in values]
    return out


def clean_text(value: object) -> str:
    """A cell as text; its bytes decoded."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _to_arrays(columns: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """The columns as arrays for the cache; labels, groups and domains as int64 [N]."""
    out: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for name in ("path", "text"):
        if name in columns:
            out |= StringTable.from_strings(columns[name]).to_arrays(name)
    why = "The table has no column label."
    if "label" in columns:
        found = read_labels(columns["label"], lambda i: f"row {i + 2} ({columns['path'][i]})")
        why = found.why and f"In the column label, {found.why}"
        notes += found.notes
        if found.labels is not None:
            out["labels"] = found.labels
            out |= StringTable.from_strings(found.classes).to_arrays("classes")
    for name in ("group", "domain"):
        values = columns.get(name, [])
        empty = [i for i, value in enumerate(values) if value in MISSING]
        if not values or len(empty) == len(values):
            continue
        if empty:
            effect = (
                "each is a group of its own" if name == "group" else "so that domains are not used"
            )
            notes.append(
                f"{len(empty):,} row(s) have no {name}, first row {empty[0] + 2}: {effect}"
            )
            values = ["" if value in MISSING else value for value in values]
        if empty and name == "domain":
            continue
        distinct, out[f"{name}s"] = encode_names(fill_groups(values))
        out |= StringTable.from_strings(distinct).to_arrays(f"{name}s_of")
    out |= StringTable.from_strings(notes).to_arrays("notes")
    return out | StringTable.from_strings([why]).to_arrays("unlabelled")


_SPELLINGS = {
    "/": "backslashes, as Windows writes them, were read as /",
    "NFC": "accents in names were read as composed letters (NFC)",
    "NFD": "accents in names were read as separate signs (NFD)",
}


def _respell(path: str, how: str) -> str:
    """A path in one of `_SPELLINGS`; "" leaves it as it is."""
    if how in ("NFC", "NFD"):
        return normalize(how, path)
    return path.replace("\\", "/") if how else path


def _find_spelling(paths: StringTable, folder: str) -> str:
    """The spelling in which the files of a table made on another system are found, or ""."""
    tried = [paths[i] for i in range(0, len(paths), max(len(paths) // 8, 1))]

    def found(how: str) -> int:
        return sum(os.path.lexists(os.path.join(folder, _respell(p, how))) for p in tried)

    as_is = found("")
    if as_is == len(tried):
        return ""
    best = max(_SPELLINGS, key=found)
    return best if found(best) > as_is else ""


def _hint(path: str, reason: str) -> str:
    """What may be wrong with a path that names no file."""
    if not reason.startswith("no such file"):
        return ""
    if path.startswith(("http://", "https://", "s3://", "gs://")):
        return " (a web address: download the images, and list the files)"
    if "\\" in path or path[1:3] == ":/":
        return " (a path of Windows, with backslashes or a drive: write it relative to the list)"
    if path.startswith("~"):
        return " (~ is not expanded in a list)"
    return ""

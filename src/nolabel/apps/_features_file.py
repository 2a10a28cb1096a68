"""How the features of `nolabel embed` are written: reserved, converted, described."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nolabel._files import atomic, write_text
from nolabel.errors import UsageError, printable

_BLOCK_BYTES = 1 << 20  # written at once where space is reserved by writing
_BLOCK_ROWS = 8192  # of a Parquet row group, and of a block in memory


def finish(
    path: Path, partial: Path, rows: np.memmap, about: dict[str, Any], names: Iterable[str]
) -> None:
    """Writes names, description and features from the memory-mapped array, and removes it.

    The features come last: if they are there, they are complete. Features that are replaced go
    first, so that they never stand beside the description of others.
    """
    for ending in ("", ".faiss", ".faiss.json"):
        with_suffix(path, ending).unlink(missing_ok=True)
    digest = hashlib.sha256()
    with atomic(with_suffix(path, ".paths")) as file:
        for name in names:
            line = (json.dumps(printable(name)) + "\n").encode()
            digest.update(line)
            file.write(line)
    more = {"paths_sha256": digest.hexdigest(), "features_sha256": features_digest(rows)}
    write_text(with_suffix(path, ".json"), as_json({**about, **more}))
    _write_final(path, rows, about)
    partial.unlink()


def features_digest(values: np.ndarray) -> str:
    """SHA-256 of features, float16 or float32 [N, D], read block by block."""
    digest = hashlib.sha256()
    for start in range(0, len(values), _BLOCK_ROWS):
        digest.update(np.ascontiguousarray(values[start : start + _BLOCK_ROWS]).data)
    return digest.hexdigest()


def allocate(path: Path, size: int) -> None:
    """Makes a file of zeros whose space is reserved on the disk.

    Writing into a mapped file whose space is missing would kill the process without a message.

    Raises:
        OSError: there is not enough space; nothing is left then.
    """
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, _BLOCK_BYTES):
                    file.write(bytes(min(_BLOCK_BYTES, size - start)))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _write_final(path: Path, rows: np.memmap, about: dict[str, Any]) -> None:
    """Converts the memory-mapped array to the final format, block by block."""
    with atomic(path) as file:
        if path.suffix == ".parquet":
            _parquet(file, path, rows)
            return
        if path.suffix == ".npy":
            head = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
            np.lib.format.write_array_header_1_0(file, head)
        else:
            kind = {"float16": "F16", "float32": "F32"}[about["dtype"]]
            entry = {"dtype": kind, "shape": list(rows.shape), "data_offsets": [0, rows.nbytes]}
            text = json.dumps({"features": entry}).encode()
            text += b" " * (-len(text) % 8)
            file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, len(rows), _BLOCK_ROWS):
            file.write(np.ascontiguousarray(rows[start : start + _BLOCK_ROWS]).data)


def _parquet(file: BinaryIO, path: Path, rows: np.memmap) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "Writing Parquet needs pyarrow: pip install 'nolabel[parquet]', or choose .npy. The "
            "features computed so far are kept."
        ) from None
    kind = pyarrow.list_(pyarrow.from_numpy_dtype(rows.dtype), rows.shape[1])
    schema = pyarrow.schema([("path", pyarrow.string()), ("features", kind)])
    with (
        with_suffix(path, ".paths").open(encoding="utf-8") as names,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = np.ascontiguousarray(rows[start : start + _BLOCK_ROWS])
            paths = [json.loads(next(names)) for _ in range(len(block))]
            flat = pyarrow.array(block.ravel())
            features = pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
            writer.write_table(pyarrow.table([pyarrow.array(paths), features], schema=schema))


def with_suffix(path: Path, ending: str) -> Path:
    """The path with more at its end: FILE.npy.json for FILE.npy."""
    return path.with_name(path.name + ending)


def as_json(value: object) -> str:
    """A value of JSON's types as text, a key a line."""
    return json.dumps(value, indent=1) + "\n"

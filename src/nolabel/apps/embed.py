"""`nolabel embed`: the features of a data set in one file, written in pieces, resumable.

Beside FILE there are FILE.json (what the features are, and which images could not be read) and
FILE.paths (a name for each row, one a line). While it is written, FILE is named FILE.partial, a
plain array on disk, and FILE.partial.json holds the number of images that are done; the same
command continues from there. The features are never held in memory as a whole.

Row i belongs to image i of the set; a row whose image could not be read is NaN.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.data.progress import progress_bar
from nolabel.data.source import Source, Subset
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import chunks
from nolabel.errors import DataError, FileDamaged, UsageError, printable, unknown

FORMATS = (".npy", ".safetensors", ".parquet")
POOLS = ("auto", "class", "mean", "both")
SAVE_SECONDS = 10.0
_ROWS = 8192  # of a Parquet row group, and of a piece that is read at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the features are."""

    pool: str = "auto"  # the encoder's own; class token; mean of patches; both side by side
    normalize: bool = False  # rows of unit length
    half: bool = False  # store float16 instead of float32
    precision: str = "fp32"  # or bf16, faster on most GPUs and some CPUs, and a little coarser
    batch_size: int = 256  # images at once
    shard: str = ""  # I/N: the I-th of N parts of the set, counted from 1, for several machines

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        if self.precision not in ("fp32", "bf16"):
            raise unknown("precision", self.precision, ("fp32", "bf16"))
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}.")
        part(self.shard, 1)


@dataclass(frozen=True)
class Index:
    """Features on disk.

    Attributes:
        path: of the file.
        values: float [N, D], read as they are asked for; rows of NaN have no image.
        about: the content of FILE.json.
    """

    path: Path
    values: np.ndarray
    about: dict[str, Any]

    def names(self) -> list[str]:
        """A path or name for each row."""
        return [json.loads(line) for line in _beside(self.path, ".paths").read_text().splitlines()]


def part(shard: str, count: int) -> range:
    """The numbers of the images in part I/N of `count`; "" is all."""
    if not shard:
        return range(count)
    one, slash, of = shard.partition("/")
    if not (slash and one.isdigit() and of.isdigit() and 1 <= int(one) <= int(of)):
        raise UsageError(f"shard must be I/N with I from 1 to N, such as 3/8, got {shard!r}.")
    i, n = int(one), int(of)
    return range(count * (i - 1) // n, count * i // n)


def embed(
    encoder: Encoder,
    source: Source,
    out: str | os.PathLike[str],
    *,
    options: Options | None = None,
    overwrite: bool = False,
) -> Index:
    """Writes the features of every image of a source, continuing where it stopped.

    Args:
        encoder: does the work on its own device.
        source: the images.
        out: .npy, .safetensors (tensor `features`) or .parquet (columns path and features).
        options: what the features are.
        overwrite: whether a finished file, or one begun with other settings, may be replaced.

    Raises:
        UsageError: an unknown ending; the file is there, or was begun with other settings; or the
            encoder has no class token to give.
        DataError: no image could be read.
    """
    o = options or Options()
    path = Path(out)
    if path.suffix not in FORMATS:
        raise unknown("ending of the file", path.suffix or path.name, FORMATS)
    if path.exists() and not overwrite:
        raise UsageError(f"{str(path)!r} exists already. Say --overwrite to replace it.")
    numbers = part(o.shard, len(source))
    if not numbers:
        raise UsageError(f"Part {o.shard} of {len(source)} images is empty. Use fewer parts.")
    encoder.precision = o.precision
    pooled = pooling(encoder, o.pool)
    width = width_of(encoder, o.pool)
    about: dict[str, Any] = {
        "format": 1, "encoder": encoder.name, "checksum": encoder.meta.get("checksum"),
        "image_size": encoder.image_size, "data": source.name, "first": numbers.start,
        "count": len(numbers), "dim": width, "dtype": "float16" if o.half else "float32",
        "pool": o.pool, "normalized": o.normalize, "precision": o.precision,
    }  # fmt: skip
    partial, state_file = _beside(path, ".partial"), _beside(path, ".partial.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    done, skipped = _begun(partial, state_file, about, overwrite)
    shape = (len(numbers), width)
    rows = np.memmap(partial, dtype=about["dtype"], mode="r+" if done else "w+", shape=shape)
    saved, started = time.monotonic(), done

    def save() -> None:
        rows.flush()
        _write(state_file, {**about, "done": done, "skipped": skipped})

    rest = Subset(source, np.arange(numbers.start + done, numbers.stop), source.name)
    title = f"{encoder.name} on {source.name}"
    try:
        with progress_bar(title, len(rest), True) as advance:
            for chunk in chunks(rest, o.batch_size):
                count = len(chunk.keys) + len(chunk.skipped)
                rows[done : done + count] = np.nan
                if len(chunk.keys):
                    z = pooled(encoder.prepare_pixels(chunk.images))
                    at = np.asarray(chunk.keys, dtype=np.int64) + started
                    rows[at] = (F.normalize(z, dim=1) if o.normalize else z).numpy()
                skipped += [[printable(p), reason] for p, reason in chunk.skipped]
                done += count
                advance(count)
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
    finally:  # also when it is stopped: the next call continues after the last whole batch
        save()
    if len(skipped) == len(numbers):
        raise DataError(f"No image of {source.name!r} can be read. First: {': '.join(skipped[0])}.")
    with _beside(path, ".paths").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(printable(source.path(i))) + "\n" for i in numbers)
    _finish(path, partial, rows, about)
    _write(_beside(path, ".json"), {**about, "skipped": skipped})
    state_file.unlink()
    return open_index(path)


def pooling(encoder: Encoder, pool: str) -> Callable[[Tensor], Tensor]:
    """From prepared images to features float32 [N, D or 2 D] on the CPU.

    Raises:
        UsageError: the encoder has no class token.
    """

    def pooled(x: Tensor) -> Tensor:
        with encoder.evaluating():
            t = encoder.backbone.tokens(x)
            if pool != "mean" and (t.prefix is None or not t.prefix.shape[1]):
                raise UsageError(f"{encoder.name!r} has no class token. Use --pool mean or auto.")
            mean = t.patches.mean(1)
            first = mean if t.prefix is None or not t.prefix.shape[1] else t.prefix[:, 0]
            parts = {"class": [first], "mean": [mean], "both": [first, mean]}[pool]
            return torch.cat(parts, 1).float().cpu()

    return encoder.forward if pool == "auto" else pooled


def open_index(path: str | os.PathLike[str]) -> Index:
    """Features that `embed` wrote.

    Raises:
        UsageError: no such file, or one that is not finished.
        FileDamaged: its description is missing or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        begun = _beside(path, ".partial").exists()
        more = "it is not finished: run the same embed again" if begun else "no such file"
        raise UsageError(f"No features at {str(path)!r}: {more}.")
    try:
        about = json.loads(_beside(path, ".json").read_text(encoding="utf-8"))
        shape = (int(about["count"]), int(about["dim"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileDamaged(
            f"{str(path)!r} has no description beside it ({path.name}.json) that can be read "
            f"({error}). Make it with nolabel embed."
        ) from None
    values = _opened(path, about["dtype"], shape)
    if values.shape != shape:
        raise FileDamaged(f"{str(path)!r} holds {values.shape} numbers, its description {shape}.")
    return Index(path, values, about)


def _opened(path: Path, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
            return np.memmap(path, dtype=dtype, mode="r", offset=8 + length, shape=shape)
        from pyarrow import parquet

        column = parquet.read_table(path, columns=["features"]).column("features")
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(shape)
    except (OSError, ValueError) as error:
        raise FileDamaged(f"{str(path)!r} cannot be read ({error}).") from None


def _begun(
    partial: Path, state_file: Path, about: dict[str, Any], overwrite: bool
) -> tuple[int, list[list[str]]]:
    """Images done by an earlier call with the same settings, and those that it could not read."""
    if not (partial.exists() and state_file.exists()):
        return 0, []
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
    except ValueError:
        return 0, []
    same = {k: state.get(k) for k in about} == about
    if (
        same
        and partial.stat().st_size
        == about["count"] * about["dim"] * np.dtype(about["dtype"]).itemsize
    ):
        return int(state["done"]), list(state["skipped"])
    if overwrite:
        return 0, []
    other = next((k for k in about if state.get(k) != about[k]), "size")
    raise UsageError(
        f"{str(partial)!r} was begun with another {other} ({state.get(other)!r}, now "
        f"{about.get(other)!r}). Give the same settings to continue, or --overwrite."
    )


def _finish(path: Path, partial: Path, rows: np.memmap, about: dict[str, Any]) -> None:
    """Turns the plain array into the wanted format, streaming, and takes it away."""
    temporary = _beside(path, ".tmp")
    if path.suffix == ".parquet":
        _parquet(temporary, path, rows)
    else:
        with temporary.open("wb") as file:
            if path.suffix == ".npy":
                head = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
                np.lib.format.write_array_header_1_0(file, head)
            else:
                kind = {"float16": "F16", "float32": "F32"}[about["dtype"]]
                entry = {"dtype": kind, "shape": list(rows.shape), "data_offsets": [0, rows.nbytes]}
                text = json.dumps({"features": entry}).encode()
                text += b" " * (-len(text) % 8)
                file.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, len(rows), _ROWS):
                file.write(np.ascontiguousarray(rows[start : start + _ROWS]).data)
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
    partial.unlink()


def _parquet(temporary: Path, path: Path, rows: np.memmap) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "Writing Parquet needs pyarrow: pip install 'nolabel[parquet]', or choose .npy. What "
            "is done is kept."
        ) from None
    kind = pyarrow.list_(pyarrow.from_numpy_dtype(rows.dtype), rows.shape[1])
    schema = pyarrow.schema([("path", pyarrow.string()), ("features", kind)])
    with (
        _beside(path, ".paths").open(encoding="utf-8") as names,
        parquet.ParquetWriter(temporary, schema) as writer,
    ):
        for start in range(0, len(rows), _ROWS):
            some = np.ascontiguousarray(rows[start : start + _ROWS])
            paths = [json.loads(next(names)) for _ in range(len(some))]
            flat = pyarrow.array(some.ravel())
            features = pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
            writer.write_table(pyarrow.table([pyarrow.array(paths), features], schema=schema))


def width_of(encoder: Encoder, pool: str) -> int:
    """Width of a feature, measured on a black image. Raises UsageError as `pooling`."""
    blank = np.zeros((encoder.image_size, encoder.image_size, encoder.channels), np.uint8)
    return pooling(encoder, pool)(encoder.prepare_pixels([blank])).shape[1]


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _write(path: Path, value: object) -> None:
    temporary = _beside(path, ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)

"""`nolabel embed`: features of a data set in one file; an interrupted run is resumed.

FILE.json describes the features and lists images that could not be read; FILE.paths has one name
per line for each row. Until it is complete, the features are in FILE.partial, a memory-mapped
array, and FILE.partial.json has the number of images that are done; the same command resumes from
there, if encoder and images are the same by their digests. The features are never in memory all at
once.

Row i belongs to image i of the set; the row of an image that could not be read is NaN.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel._files import Lock, check_file, read_json, write_text
from nolabel.apps._features_file import (
    allocate,
    as_json,
    features_digest,
    finish,
    with_suffix,
)
from nolabel.data.identity import data_digest
from nolabel.data.open import open_source, recorded_name
from nolabel.data.progress import progress_bar
from nolabel.data.source import Source, Subset
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import chunks, encoder_input
from nolabel.encoders.identity import encoder_digest
from nolabel.errors import DataError, FileDamaged, UsageError, printable, unknown

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

FORMATS = (".npy", ".safetensors", ".parquet")
DTYPES = ("float16", "float32")
POOLS = ("auto", "class", "mean", "both")
SAVE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the features."""

    pool: str = "auto"  # the encoder's embedding; or class token, mean of patches, or both
    normalize: bool = False  # L2-normalise the rows
    half: bool = False  # store float16 instead of float32
    precision: str = "fp32"  # or bf16: faster on most GPUs and some CPUs, less exact
    batch_size: int = 256  # images in a forward pass
    shard: str = ""  # I/N: the I-th of N parts of the set (from 1), for several machines

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        if self.precision not in ("fp32", "bf16"):
            raise unknown("precision", self.precision, ("fp32", "bf16"))
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}.")
        shard_range(self.shard, 1)


@dataclass(frozen=True)
class Index:
    """Features on disk.

    Attributes:
        path: path of the file.
        values: float16 or float32 [N, D], memory-mapped where the format allows; rows of images
            that could not be read are NaN.
        about: content of FILE.json.
    """

    path: Path
    values: np.ndarray
    about: dict[str, Any]

    def names(self) -> list[str]:
        """Paths or names of the N images.

        Raises:
            FileDamaged: FILE.paths is missing or belongs to other features.
        """
        file = with_suffix(self.path, ".paths")
        try:
            text = file.read_bytes()
            names = [json.loads(line) for line in text.splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise FileDamaged(
                f"{file} cannot be read ({error}). Run nolabel embed again."
            ) from None
        digest = self.about.get("paths_sha256", hashlib.sha256(text).hexdigest())
        if len(names) != len(self.values) or hashlib.sha256(text).hexdigest() != digest:
            raise FileDamaged(
                f"{file} does not belong to {self.path}: it is of other features. Run nolabel "
                "embed again."
            )
        return names


def shard_range(shard: str, count: int) -> range:
    """Indices of the images of a shard.

    Args:
        shard: I/N, the I-th of N parts, from 1; "" is all images.
        count: number of images.

    Raises:
        UsageError: not of this form.
    """
    if not shard:
        return range(count)
    index, slash, total = shard.partition("/")
    if not (slash and index.isdigit() and total.isdigit() and 1 <= int(index) <= int(total)):
        raise UsageError(f"shard must be I/N with I from 1 to N, such as 3/8, got {shard!r}.")
    i, n = int(index), int(total)
    return range(count * (i - 1) // n, count * i // n)


def open_inputs(
    encoder: Encoder | str | os.PathLike[str],
    data: SourceSpec,
    *,
    image_size: int | None = None,
    device: str = "auto",
) -> tuple[Encoder, Source]:
    """The encoder and the images of `embed`, as users name them.

    Args:
        encoder: loaded already, or a name that `load` takes.
        data: as `open_source` takes it.
        image_size, device: of an encoder that is given by name; see `load`.

    Raises:
        UsageError, DataError: one of them cannot be opened.
    """
    used = load(encoder, image_size=image_size, device=device)
    return used, open_source(data, image_size=used.image_size, channels=used.channels)


def embed(
    encoder: Encoder,
    source: Source,
    out: str | os.PathLike[str],
    *,
    options: Options | None = None,
    overwrite: bool = False,
) -> Index:
    """Writes the features of every image of a source, or resumes an interrupted run.

    Args:
        encoder: the encoder, used on its own device.
        source: the images.
        out: .npy, .safetensors (tensor `features`) or .parquet (columns path and features).
        options: options of the features.
        overwrite: whether a finished file, or one begun with other settings, may be replaced.

    Returns:
        The features on disk.

    Raises:
        UsageError: an unknown ending; the file exists, or was begun with other settings; or the
            encoder has no class token.
        DataError: no image could be read.
    """
    o = options or Options()
    path = Path(out)
    if path.suffix not in FORMATS:
        raise unknown("ending of the file", path.suffix or path.name, FORMATS)
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Lock(path.with_name(f".{path.name}.lock"), str(path)):
        return _embed(encoder, source, path, o, overwrite)


def _embed(encoder: Encoder, source: Source, path: Path, o: Options, overwrite: bool) -> Index:
    partial, state_file = with_suffix(path, ".partial"), with_suffix(path, ".partial.json")
    if path.exists() and not overwrite and not state_file.exists():
        raise UsageError(f"{str(path)!r} exists already. Say --overwrite to replace it.")
    indices = shard_range(o.shard, len(source))
    if not indices:
        raise UsageError(f"Part {o.shard} of {len(source)} images is empty. Use fewer parts.")
    encoder.precision = o.precision
    pooled = pooling(encoder, o.pool)
    width = width_of(encoder, o.pool)
    about = _describe(encoder, source, indices, width, o)
    done, skipped = _read_progress(partial, state_file, about, overwrite)
    shape = (len(indices), width)
    if not done:
        allocate(partial, len(indices) * width * np.dtype(about["dtype"]).itemsize)
    rows = np.memmap(partial, dtype=about["dtype"], mode="r+", shape=shape)
    if path.exists() and not overwrite:  # complete but for the removal of the parts
        complete = done == len(rows) and path.with_name(path.name + ".json").exists()
        if not complete or open_index(path).about.get("features_sha256") != features_digest(rows):
            raise UsageError(f"{str(path)!r} exists already. Say --overwrite to replace it.")
    saved, done_before = time.monotonic(), done

    def save() -> None:
        rows.flush()
        write_text(state_file, as_json({**about, "done": done, "skipped": skipped}))

    remaining = Subset(source, np.arange(indices.start + done, indices.stop), source.name)
    title = f"{encoder.name} on {source.name}"
    try:
        with progress_bar(title, len(remaining), True) as advance:
            for chunk in chunks(remaining, o.batch_size, encoder_input(encoder)):
                count = len(chunk.keys) + len(chunk.skipped)
                rows[done : done + count] = np.nan
                if chunk.x is not None:
                    z = pooled(chunk.x)
                    rows_of_batch = np.asarray(chunk.keys, dtype=np.int64) + done_before
                    rows[rows_of_batch] = (F.normalize(z, dim=1) if o.normalize else z).numpy()
                skipped += [[printable(p), reason] for p, reason in chunk.skipped]
                done += count
                advance(count)
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
    finally:  # also on an interrupt: the next call resumes after the last complete batch
        save()
    if len(skipped) == len(indices):
        raise DataError(f"No image of {source.name!r} can be read. First: {': '.join(skipped[0])}.")
    finish(path, partial, rows, {**about, "skipped": skipped}, (source.path(i) for i in indices))
    state_file.unlink()
    return open_index(path)


def _describe(
    encoder: Encoder, source: Source, indices: range, width: int, o: Options
) -> dict[str, Any]:
    """What the index file says; a file that was begun with other values is not continued."""
    return {
        "format": 1, "encoder": encoder.name, "checksum": encoder.meta.get("checksum"),
        "encoder_digest": encoder_digest(encoder), "image_size": encoder.image_size,
        "data": recorded_name(source), "data_digest": data_digest(source), "first": indices.start,
        "count": len(indices), "dim": width, "dtype": "float16" if o.half else "float32",
        "pool": o.pool, "normalized": o.normalize, "precision": o.precision,
    }  # fmt: skip


def pooling(encoder: Encoder, pool: str) -> Callable[[Tensor], Tensor]:
    """Makes the function that computes features.

    Args:
        encoder: the encoder.
        pool: one of `POOLS`.

    Returns:
        Function of prepared images float32 [N, C, S, S] that returns features float32 [N, D], or
        [N, 2 D] for "both", on the CPU. It raises UsageError if there is no class token.
    """

    def pooled(x: Tensor) -> Tensor:
        with encoder.evaluating():
            t = encoder.backbone.tokens(x)
            if pool != "mean" and (t.prefix is None or not t.prefix.shape[1]):
                raise UsageError(f"{encoder.name!r} has no class token. Use --pool mean or auto.")
            mean = t.patches.float().mean(1)
            first = mean if t.prefix is None or not t.prefix.shape[1] else t.prefix[:, 0].float()
            parts = {"class": [first], "mean": [mean], "both": [first, mean]}[pool]
            return torch.cat(parts, 1).float().cpu()

    return encoder.forward if pool == "auto" else pooled


def open_index(path: str | os.PathLike[str]) -> Index:
    """Opens features that `embed` wrote.

    Raises:
        UsageError: no such file, or one that is not finished.
        FileDamaged: FILE.json is missing or does not match.
    """
    path = Path(path)
    if not path.is_file():
        unfinished = with_suffix(path, ".partial").exists()
        more = "it is not finished: run the same embed again" if unfinished else "no such file"
        raise UsageError(f"No features at {str(path)!r}: {more}.")
    try:
        about = json.loads(with_suffix(path, ".json").read_text(encoding="utf-8"))
        shape = (int(about["count"]), int(about["dim"]))
        if str(about["dtype"]) not in DTYPES or min(shape) < 0:
            raise ValueError(f"{shape} numbers of the type {about['dtype']!r:.80}")
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise FileDamaged(
            f"{str(path)!r} has no description beside it ({path.name}.json) that can be read "
            f"({error}). Make it with nolabel embed."
        ) from None
    values = _open_values(path, about["dtype"], shape)
    if values.shape != shape:
        raise FileDamaged(
            f"{str(path)!r} holds features of shape {values.shape}, its description says "
            f"{shape}. Make it again with nolabel embed."
        )
    return Index(path, values, about)


def _open_values(path: Path, dtype: str, shape: tuple[int, int]) -> np.ndarray:
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
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, SyntaxError) as error:
        raise FileDamaged(f"{str(path)!r} cannot be read ({error}).") from None


def _read_progress(
    partial: Path, state_file: Path, about: dict[str, Any], overwrite: bool
) -> tuple[int, list[list[str]]]:
    """Progress of an interrupted run with the same settings: images done, and unreadable ones."""
    if not (partial.exists() and state_file.exists()):
        return 0, []
    state = read_json(state_file, 1 << 30)  # it lists all that was skipped
    if not isinstance(state, dict):
        return 0, []
    same_settings = {k: state.get(k) for k in about} == about
    if (
        same_settings
        and partial.stat().st_size
        == about["count"] * about["dim"] * np.dtype(about["dtype"]).itemsize
    ):
        return int(state["done"]), list(state["skipped"])
    if overwrite:
        return 0, []
    changed = next((k for k in about if state.get(k) != about[k]), "size")
    values = f"another {changed} ({state.get(changed)!r}, now {about.get(changed)!r})"
    what = {
        "encoder_digest": "other weights of the encoder",
        "data_digest": "other images: their names or their content changed",
    }.get(changed, values)
    raise UsageError(
        f"{str(partial)!r} was begun with {what}. Give the same to continue, or --overwrite to "
        "start from nothing."
    )


def width_of(encoder: Encoder, pool: str) -> int:
    """Width of a feature, measured on a black image.

    Raises:
        UsageError: the encoder has no class token, for `pool` "class" or "both".
    """
    blank = np.zeros((encoder.image_size, encoder.image_size, encoder.channels), np.uint8)
    return pooling(encoder, pool)(encoder.prepare_pixels([blank])).shape[1]

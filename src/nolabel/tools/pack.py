"""Packs any source into tar shards: images are checked, and resized if wanted.

A shard is written atomically (temporary file, fsync, rename), and `pack.json` is updated after
each one. A stopped run of `pack` continues after the last complete shard.

A member is named `FOLDER/NUMBER_NAME.SUFFIX`, with the image's index in the source. The label, the
group, the domain and the text of a sample are members of the same name with the suffixes `.cls`,
`.group`, `.domain` and `.txt`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nolabel._files import LOCK, Lock, atomic, read_json, write_text
from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.data.sources._decode import decoding_in_threads, read_image
from nolabel.data.sources.shards import Shards
from nolabel.device import cpu_cores
from nolabel.errors import BadImage, DataError, UsageError, none_readable, printable

_FORMAT = 1
_MAX_RECORD = 1 << 30  # bytes of pack.json, which lists all that was skipped
_COPIED_FORMATS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
}  # formats whose files are copied unchanged if no resizing is needed
_TIMED_IMAGES = 200  # images that are read from the source and from the shards, to compare rates
# Suffix of the members, the numbers of the images (None: there are none), the names of the numbers.
Names = tuple[tuple[str, np.ndarray | None, tuple[str, ...]], ...]
_UNSAFE = re.compile(r"[^A-Za-z0-9_/+-]+")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Options of `pack`."""

    max_side: int | None = None  # longest side in pixels: larger images are resized, none enlarged
    quality: int = 92  # JPEG quality of resized images, 1 to 100
    shard_images: int = 10_000  # images in a shard

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_side", 1, 1 << 16),
            ("quality", 1, 100),
            ("shard_images", 1, 1 << 30),
        ):
            value = vars(self)[name]
            if value is not None and not least <= value <= most:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is {value}; it must lie between {least} and {most}.")


def pack(
    source: Source, out: str | os.PathLike[str], packing: Packing | None = None
) -> dict[str, Any]:
    """Packs a source into `out`/000000.tar, 000001.tar, ...

    Args:
        source: images to pack. Those that cannot be read are left out and listed in
            skipped.jsonl.
        out: a new or empty folder, or one in which `pack` was stopped with the same source and
            options.
        packing: options; None: the defaults.

    Returns:
        {"images", "skipped", "shards", "bytes_before", "bytes_after", "images_per_second_before",
        "images_per_second_after", "pattern"}. Rates are of reading and decoding on one core. The
        "before" values are None for a source without files.

    Raises:
        UsageError: the folder holds something else, or another process packs into it.
        DataError: no image could be read; or a shard has changed since it was written.
    """
    packing = packing or Packing()
    folder = Path(out)
    with Lock(folder / LOCK, f"the packing in {folder}"):
        return _pack(source, folder, packing)


def _pack(source: Source, folder: Path, packing: Packing) -> dict[str, Any]:
    """As `pack`, while no other process writes into the folder."""
    plan = {
        "format": _FORMAT,
        "source": source.name,
        "images": len(source),
        "names": _names_digest(source),
        "max_side": packing.max_side,
        "quality": packing.quality,
        "shard_images": packing.shard_images,
    }
    state = _load_state(folder, plan)
    shards = -(-len(source) // packing.shard_images)
    done = len(state["shards"])
    workers = cpu_cores()
    with (
        progress_bar(f"packing {source.name}", len(source)) as advance,
        decoding_in_threads(),
        ThreadPoolExecutor(workers, "nolabel-pack") as pool,
    ):
        advance(min(done * packing.shard_images, len(source)))
        for shard in range(done, shards):
            first = shard * packing.shard_images
            span = range(first, min(first + packing.shard_images, len(source)))
            entry, skipped = _write_shard(
                source, folder, shard, span, packing, pool, workers, advance
            )
            state["shards"].append(entry)
            state["skipped"] += skipped
            _save(folder, state)
    lines = [json.dumps({"path": p, "reason": r}) + "\n" for p, r in state["skipped"]]
    write_text(folder / "skipped.jsonl", "".join(lines))
    images = sum(s["images"] for s in state["shards"])
    if not images:
        skipped = state["skipped"]
        first = BadImage(*skipped[0]) if skipped else None
        raise none_readable(source.name, len(skipped), first)
    packed = Shards(str(folder / "*.tar"))
    sizes = [s["before"] for s in state["shards"]]
    return {
        "images": images,
        "skipped": len(state["skipped"]),
        "shards": len(state["shards"]),
        "bytes_before": None if None in sizes else sum(sizes),
        "bytes_after": sum(s["bytes"] for s in state["shards"]),
        "images_per_second_before": _rate(source) if source.has_files else None,
        "images_per_second_after": _rate(packed),
        "pattern": str(folder / "*.tar"),
    }


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Shards whose bytes are not those that were packed; empty when all is well."""
    state, bad = _read_state(Path(folder) / "pack.json"), []
    for shard in state["shards"]:
        path = Path(folder) / shard["file"]
        if not path.is_file() or _sha256(path) != shard["sha256"]:
            bad.append(shard["file"])
    return bad


def _load_state(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The content of pack.json: the shards that are complete; none in a new folder."""
    record = folder / "pack.json"
    if record.is_file():
        state = _read_state(record)
        if state["plan"] != plan:
            old = state["plan"]
            other = [k for k in plan if old.get(k) != plan[k]]
            raise UsageError(
                f"{folder} holds another packing (different: {', '.join(other)}). Use another "
                "--out, or the same data and settings to go on."
            )
        for shard in state["shards"]:
            path = folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise DataError(
                    f"{path} is missing or has changed since it was packed. Pack into another "
                    "folder."
                )
        return state
    if any(path.name != LOCK for path in folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no packing. Use another --out.")
    state = {"plan": plan, "shards": [], "skipped": []}
    _save(folder, state)
    return state


def _read_state(record: Path) -> dict[str, Any]:
    """The content of pack.json. Raises DataError if it is damaged."""
    state = read_json(record, _MAX_RECORD)
    if not isinstance(state, dict) or not isinstance(state.get("plan"), dict):
        raise DataError(f"{record} is damaged. Pack into another folder.")
    shards, skipped = state.get("shards"), state.get("skipped")
    types = {"file": str, "bytes": int, "images": int, "sha256": str}
    if (
        not isinstance(shards, list)
        or not isinstance(skipped, list)
        or not all(isinstance(s, dict) for s in shards)
        or not all(isinstance(s.get(k), type_) for s in shards for k, type_ in types.items())
        or not all(isinstance(s, list) and len(s) == 2 for s in skipped)
    ):
        raise DataError(f"{record} is damaged. Pack into another folder.")
    return state


def _write_shard(
    source: Source,
    folder: Path,
    shard: int,
    span: range,
    packing: Packing,
    pool: ThreadPoolExecutor,
    workers: int,
    advance: Callable[[int], None],
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Writes one shard atomically; returns its entry in pack.json and the images left out."""
    path = folder / f"{shard:06}.tar"
    skipped: list[tuple[str, str]] = []
    images, before = 0, 0
    names: Names = (
        ("cls", source.labels, source.classes),
        ("group", source.groups, tuple(source.group_names)),
        ("domain", source.domains, source.domain_names),
    )
    form = tarfile.PAX_FORMAT
    with atomic(path) as file, tarfile.open(fileobj=file, mode="w", format=form) as tar:
        # In small groups, so that few images are in memory, whatever the shard's size.
        for start in range(span.start, span.stop, 8 * workers):
            some = range(start, min(start + 8 * workers, span.stop))
            for i, made in zip(
                some,
                pool.map(lambda i: _encode_member(source, i, packing), some),
                strict=True,
            ):
                if isinstance(made, BadImage):
                    skipped.append((printable(made.path), made.reason))
                    continue
                images += 1
                before += made.before
                _add_sample(tar, source, i, made, names)
            advance(len(some))
    entry = {
        "file": path.name,
        "images": images,
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
        "before": before if source.has_files else None,
    }
    return entry, skipped


@dataclass(frozen=True)
class _Member:
    data: bytes
    suffix: str
    before: int  # bytes of the original file; 0 for a source without files
    text: str | None


def _encode_member(source: Source, i: int, packing: Packing) -> _Member | BadImage:
    """The member for image i: its file unchanged if that is small enough, else resized."""
    try:
        if not source.has_files:
            sample = source.read(i)
            return _Member(*_encode(sample.image, packing, lossless=True), 0, sample.text)
        data = source.read_bytes(i)
        pixels = read_image(data)  # decoded fully, so that only readable images are packed
        text = source.read_text(i)
        with Image.open(io.BytesIO(data)) as image:
            suffix = _COPIED_FORMATS.get(image.format or "")
        small = packing.max_side is None or max(pixels.shape[:2]) <= packing.max_side
        if small and suffix:
            return _Member(data, suffix, len(data), text)
        return _Member(*_encode(pixels, packing, lossless=small), len(data), text)
    except BadImage as error:
        return BadImage(source.path(i), error.reason)
    except OSError as error:
        return BadImage(source.path(i), f"cannot be read ({error.strerror or error})")


def _encode(pixels: np.ndarray, packing: Packing, *, lossless: bool) -> tuple[bytes, str]:
    image = Image.fromarray(pixels)
    longest = max(image.size)
    if packing.max_side is not None and longest > packing.max_side:
        scale = packing.max_side / longest
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if lossless:
        image.save(file, "PNG")
        return file.getvalue(), "png"
    image.save(file, "JPEG", quality=packing.quality)
    return file.getvalue(), "jpg"


def _add_sample(tar: tarfile.TarFile, source: Source, i: int, made: _Member, names: Names) -> None:
    base = _member_name(source, i)
    files = [(f"{base}.{made.suffix}", made.data)]
    for kind, numbers, named in names:
        if numbers is not None:
            number = int(numbers[i])
            files.append((f"{base}.{kind}", (named[number] if named else str(number)).encode()))
    if made.text is not None:
        files.append((f"{base}.txt", made.text.encode()))
    for name, data in files:
        info = tarfile.TarInfo(name)  # no time, no owner: the same images give the same bytes
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))


def _member_name(source: Source, i: int) -> str:
    """FOLDER/NUMBER_NAME without a suffix, of ASCII letters, digits and `_+-`, without `..`."""
    path = source.path(i).replace("\\", "/").rpartition("::")[2]
    if source.root and path.startswith(source.root + "/"):
        path = path[len(source.root) + 1 :]
    elif path.startswith("/"):
        path = os.path.basename(path)
    folder, _, name = path.rpartition("/")
    stem = _UNSAFE.sub("_", os.path.splitext(name)[0])
    parts = [_UNSAFE.sub("_", part) for part in folder.split("/") if part not in ("", ".", "..")]
    return "/".join([*parts, f"{i:09}_{stem}"])


def _names_digest(source: Source) -> str:
    digest = hashlib.sha256()
    for i in range(len(source)):
        digest.update(os.fsencode(source.path(i)) + b"\0")
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(folder: Path, state: dict[str, Any]) -> None:
    write_text(folder / "pack.json", json.dumps(state, indent=1))


def _rate(source: Source) -> float:
    """Measures how many images per second one core reads and decodes."""
    count = min(_TIMED_IMAGES, len(source))
    picked = np.linspace(0, len(source) - 1, count).astype(int)
    began, good = time.perf_counter(), 0
    for i in picked.tolist():
        try:
            source.read(i)
            good += 1
        except BadImage:
            continue
    return good / max(time.perf_counter() - began, 1e-9)

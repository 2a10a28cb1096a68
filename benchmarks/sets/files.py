"""Files of a set in memory, and how they are written."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class File(NamedTuple):
    """One image file: the folder of its class, its suffix, and its bytes."""

    label: str
    suffix: str
    content: bytes


def generator(name: str, seed: int, split: str, index: int = 0) -> np.random.Generator:
    """Random numbers of one image; they do not depend on how many others there are."""
    return np.random.default_rng(
        [zlib.crc32(name.encode()), seed, zlib.crc32(split.encode()), index]
    )


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as a PNG file."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", compress_level=3)
    return target.getvalue()


def jpeg(pixels: np.ndarray, quality: int, orientation: int = 1) -> bytes:
    """uint8 [H, W, 3] as a JPEG file, with the EXIF orientation unless it is 1."""
    target = io.BytesIO()
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(target, "JPEG", quality=quality, exif=exif)
    return target.getvalue()


def write(folder: Path, files: Iterable[File]) -> int:
    """Writes files to `folder/CLASS/NUMBER.suffix`; returns how many."""
    count = 0
    for count, file in enumerate(files, 1):
        place = folder / file.label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{count - 1:05d}{file.suffix}").write_bytes(file.content)
    return count

"""Reads image files with any number of channels, 8 or 16 bits deep, without conversion to RGB.

For X-ray, microscope, satellite and depth images. The EXIF orientation is applied as for
photographs; the only conversion is colour to grey, for sources of one channel.

    1 channel      grey files unchanged, 8 or 16 bits; colour files are converted to grey, and
                   transparent pixels are white
    4 channels     RGBA and CMYK files unchanged
    any number     `.npy` arrays uint8 or uint16 [H, W, C] (or [H, W])
"""

from __future__ import annotations

import io
import math
import os
import tokenize

import numpy as np
from PIL import Image

from nolabel.data.sources._decode import MAX_PIXELS, SUFFIXES, decode, open_regular, read_image
from nolabel.data.sources._pixels import to_rgb
from nolabel.errors import BadImage

ARRAY_SUFFIX = ".npy"
BAND_SUFFIXES = SUFFIXES | {ARRAY_SUFFIX}
_NPY_MAGIC = b"\x93NUMPY"


def read_bands(
    source: str | os.PathLike[str] | bytes,
    channels: int,
    *,
    max_pixels: int = MAX_PIXELS,
    sufficient_pixels: int | None = None,
) -> np.ndarray:
    """Reads one image with this number of channels.

    Args:
        source: a path, or the bytes of a file.
        channels: number of channels C; with 3, `read_image` reads all but `.npy` files.
        max_pixels: largest width x height accepted.
        sufficient_pixels: see `read_image`; used with 3 channels only.

    Returns:
        uint8 or uint16 [H, W, C], contiguous.

    Raises:
        BadImage: as `read_image`, or the file has another number of channels.
    """
    if channels == 3 and not _is_npy(source):
        return read_image(source, max_pixels=max_pixels, sufficient_pixels=sufficient_pixels)
    if isinstance(source, bytes):
        name, data = "<bytes>", source
    else:
        name = os.fspath(source)
        try:
            with open_regular(name) as file:
                data = file.read()
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise BadImage(name, f"cannot be read ({reason})") from None
    if data.startswith(_NPY_MAGIC):
        pixels = _load_npy(data, name)
        if pixels.shape[0] * pixels.shape[1] > max_pixels:
            raise BadImage(name, f"larger than the limit of {max_pixels:,} pixels")
    else:
        pixels = decode(io.BytesIO(data), name, max_pixels, lambda i: _to_bands(i, channels))
        if pixels.dtype not in (np.uint8, np.uint16):
            raise BadImage(name, f"values of {pixels.dtype}; allowed are 8 and 16 bits")
    if pixels.shape[2] != channels:
        raise BadImage(name, f"has {pixels.shape[2]} channels, not {channels}")
    return pixels


def to_rgb8(pixels: np.ndarray) -> np.ndarray:
    """Converts pixels of any number of channels to RGB for display.

    Args:
        pixels: uint8 or uint16 [H, W, C]. The first three channels become red, green and blue; with
            one or two channels, the first becomes grey. 16 bits are scaled from the smallest value
            (black) to the largest (white).

    Returns:
        uint8 [H, W, 3], contiguous.
    """
    rgb = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, -1)
    if rgb.dtype != np.uint8:
        low, high = float(rgb.min()), float(rgb.max())
        rgb = ((rgb - low) * (255 / max(high - low, 1))).round().astype(np.uint8)
    return np.ascontiguousarray(rgb)


def _is_npy(source: str | os.PathLike[str] | bytes) -> bool:
    if isinstance(source, bytes):
        return source.startswith(_NPY_MAGIC)
    return os.fspath(source).lower().endswith(ARRAY_SUFFIX)


def _load_npy(data: bytes, name: str) -> np.ndarray:
    try:
        _check_npy_size(data)
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadImage(name, f"a damaged array ({str(error).splitlines()[0]})") from None
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.uint16) or 0 in pixels.shape:
        raise BadImage(
            name,
            f"an array {pixels.dtype} {list(pixels.shape)}; allowed are uint8 and uint16 "
            "[H, W, channels]",
        )
    return np.ascontiguousarray(pixels)


def _check_npy_size(data: bytes) -> None:
    """Refuses a header that claims more values than follow it, before memory is allocated.

    Raises:
        ValueError: it does, or the header cannot be read.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0
    }  # fmt: skip
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    try:
        shape, _, dtype = readers[version](file)
    except (SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from None
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > len(data) - file.tell():
        raise ValueError(f"its header claims {dtype} {list(shape)[:4]}, the file ends too early")


def _to_bands(image: Image.Image, channels: int) -> np.ndarray:
    """A loaded image as [H, W, C] with the file's own channels; grey if `channels` is 1."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit values {values.min()} to {values.max()}, not 0 to 65535")
        pixels = values.astype(np.uint16)
    elif image.mode == "F":
        # Without a range that all files share: stretching each one would change what it says.
        raise ValueError("floating-point values; save them as 16 bits, or as .npy uint16")
    elif channels == 1:
        # What lies under transparent pixels is not part of the picture.
        seen = Image.fromarray(to_rgb(image)) if image.has_transparency_data else image
        pixels = np.asarray(seen.convert("L"))
    elif image.mode in ("P", "PA", "LA") and image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
    else:
        pixels = np.asarray(image.convert("RGB") if image.mode in ("P", "1") else image)
    return pixels[..., None] if pixels.ndim == 2 else pixels

"""Decodes image files to uint8 RGB, by the same rules for every source.

    orientation   the EXIF orientation is applied
    transparency  is composited onto white, whether it is an alpha channel, a palette entry or a
                  single transparent colour
    grey          is repeated into three channels
    16-bit grey   is scaled by its full range (65535 -> 255), never clipped
    32-bit grey   (integer or float) has no defined range: its smallest value becomes black, its
                  largest white
    CMYK          is inverted in a JPEG, as Adobe writes it, with or without its marker: so do
                  Pillow and browsers; ICC profiles are not applied
    animation     gives its first frame

JPEG is decoded by simplejpeg where it is installed: the same pixels as from Pillow, in two thirds
of the time. A truncated file is an error, never filled up with grey. One kind of damage is not
detected: a JPEG with data missing in the middle but a proper end, which libjpeg accepts.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile

from nolabel.data.sources._pixels import apply_orientation, orientation, to_rgb
from nolabel.errors import BadImage, DataError

# Pillow's own limit: a quarter of a gibibyte at 24 bits a pixel.
MAX_PIXELS = 178_956_970

# A header that claims more pixels per byte of file is wrong, and refused before memory is
# allocated. A JPEG's block of 256 pixels takes at least six bits (except with arithmetic coding);
# deflate makes 1,032 bytes of one at most, and a byte of a PNG holds up to eight pixels; a code of
# a GIF stands for a string that grows by one with every code.
_JPEG = ("JPEG", "MPO")
_MAX_PIXELS_PER_BYTE = {"JPEG": 2000, "MPO": 2000, "PNG": 8 * 1032, "GIF": 3000}

# A progressive JPEG is decoded once for each scan. Encoders write ten or so; a file of hundreds
# takes minutes.
_MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"

# An allow-list: Pillow also opens vector, scientific and container formats (EPS, PDF, FITS, HDF5)
# that start interpreters, hold no image, or had security holes.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),  # a JPEG followed by more images; phones save it with the suffix .jpg
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# Common files that are not supported images: (first bytes in lower case, message).
_OTHER_CONTENT = (
    (b"<!doctype html", "a web page (HTML), not an image"),
    (b"<html", "a web page (HTML), not an image"),
    (b"<?xml", "an XML or SVG text, not pixels"),
    (b"<svg", "an SVG drawing, not pixels"),
    (b"%pdf", "a PDF document, not an image"),
    (b"%!ps", "a PostScript document, which is never run here"),
    (b"pk\x03\x04", "a ZIP archive, not an image"),
    (b"\x1f\x8b", "a gzip archive, not an image"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the real file with 'git lfs pull'"),
)


def read_image(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    sufficient_pixels: int | None = None,
) -> np.ndarray:
    """Reads one image as RGB, upright (the rules are at the top of this file).

    Args:
        source: a path, the bytes of a file, or a Pillow image.
        max_pixels: largest width x height accepted; checked from the header, before decoding.
        sufficient_pixels: a JPEG is decoded at 1/2, 1/4 or 1/8 of its sides (DCT scaling), the
            smallest that has at least so many pixels (height x width), which takes less than half
            the time. None decodes every image at full size.

    Returns:
        uint8 [H, W, 3], RGB, contiguous and writable.

    Raises:
        BadImage: the file is missing, empty, not an image, of a format that is not in `FORMATS`,
            too large, or damaged.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "<image>", max_pixels, already_open=True)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode_file(io.BytesIO(source), "<bytes>", max_pixels, sufficient_pixels)
    path = os.fspath(source)
    try:
        with open_regular(path) as file:
            return _decode_file(file, path, max_pixels, sufficient_pixels)
    except IsADirectoryError:
        raise BadImage(path, "a folder, not an image") from None
    except FileNotFoundError:
        raise BadImage(path, "no such file") from None
    except PermissionError:
        raise BadImage(path, "no permission to read it") from None
    except (OSError, ValueError) as error:  # an I/O error; a path with a null byte
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise DataError(
                f"{path}: too many files are open. Allow more with 'ulimit -n 4096', or use fewer "
                "--workers."
            ) from None
        raise BadImage(path, f"cannot be read ({_first_line(error)})") from None


def read_regular(path: str) -> bytes:
    """The content of a regular file. Raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is a folder.
        BadImage: it is a pipe or a device, from which reading may never end.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise BadImage(path, "not a regular file")
    return open(path, "rb")  # noqa: SIM115  the caller closes it


def read_end(path: str, count: int) -> bytes:
    """The last bytes of a regular file. Raises OSError or BadImage."""
    with open_regular(path) as file:
        file.seek(-min(count, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read()


@contextlib.contextmanager
def decoding_in_threads() -> Iterator[None]:
    """Sets the process-wide switches of decoding around a block that decodes in several threads.

    Decoding an image changes and restores Pillow's LOAD_TRUNCATED_IMAGES and the warning filters.
    Threads that do so at the same time could restore a wrong value; this block restores both after
    the last thread.
    """
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


@functools.cache
def _available_formats() -> list[str]:
    """The formats of FORMATS that this build of Pillow can open (it opens MPO as JPEG)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decode_file(
    file: BinaryIO, name: str, max_pixels: int, sufficient_pixels: int | None = None
) -> np.ndarray:
    # Pillow warns about odd palettes, EXIF blocks and sizes. Unreadable files are reported by the
    # loader; the other warnings would only disturb the progress bar.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(file, name, max_pixels) as image:
            jpeg = _check_claim(file, image, name, max_pixels)
            if jpeg is not None and image.mode in ("RGB", "L"):
                pixels = _decode_jpeg(jpeg, image, sufficient_pixels)
                if pixels is not None:
                    return apply_orientation(pixels, orientation(image))
            return _decode(image, name, max_pixels)


def decode(
    file: BinaryIO, name: str, max_pixels: int, pixels: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    """Opens, converts and rotates an image upright.

    Args:
        file: an open binary file.
        name: path or name, for errors.
        max_pixels: largest width x height accepted.
        pixels: converts a loaded Pillow image to an array [H, W, C].

    Returns:
        [H, W, C] with the dtype that `pixels` returns, contiguous.

    Raises:
        BadImage: as `read_image`, or `pixels` raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(file, name, max_pixels) as image:
            _check_claim(file, image, name, max_pixels)
            return _decode(image, name, max_pixels, pixels)


def open_image(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image of an allowed format and reads its header; no pixel is decoded.

    Raises:
        BadImage: the file is empty, not an allowed image, or has a damaged header.
    """
    head = file.read(64)
    if not head:
        raise BadImage(name, "an empty file (0 bytes)")
    file.seek(0)
    try:
        return Image.open(file, formats=_available_formats())
    except Image.DecompressionBombError:
        raise BadImage(name, f"larger than the limit of {max_pixels:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImage(name, _describe_content(head)) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - plug-ins raise nearly anything when damaged
        raise BadImage(name, f"damaged header ({_first_line(error)})") from None


def _check_claim(file: BinaryIO, image: Image.Image, name: str, max_pixels: int) -> bytes | None:
    """Refuses a file whose header claims more pixels than its bytes hold, or of too many scans.

    Returns:
        The content of a JPEG, which was read for that; None for other formats, and for sizes that
        `_decode` refuses.
    """
    width, height = image.size
    limit = _MAX_PIXELS_PER_BYTE.get(image.format or "")
    if limit is None or not 0 < width * height <= max_pixels:
        return None
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if width * height > limit * size + 1_000_000:
        raise BadImage(name, f"damaged: {size:,} bytes cannot hold {width} x {height} pixels")
    if image.format not in _JPEG:
        return None
    data = file.read()
    file.seek(0)
    scans = data.count(_START_OF_SCAN)  # within pixel data, 0xff is always followed by 0
    if scans > _MAX_SCANS:
        raise BadImage(name, f"a JPEG of {scans:,} scans; at most {_MAX_SCANS} are decoded")
    return data


def _decode_jpeg(
    data: bytes, image: Image.Image, sufficient_pixels: int | None
) -> np.ndarray | None:
    """Decodes an opened JPEG to uint8 [H, W, 3]; None if Pillow shall decode it or raise."""
    width, height = image.size
    factor = 8 if sufficient_pixels else 1
    while sufficient_pixels and factor > 1 and width * height < sufficient_pixels * factor**2:
        factor //= 2
    min_height, min_width = -(-height // factor), -(-width // factor)
    try:
        import simplejpeg
    except ImportError:
        if factor > 1:
            image.draft(image.mode, (width // factor or 1, height // factor or 1))
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width)
    except ValueError:  # damaged or unusual: Pillow decides
        return None


def _decode(
    image: Image.Image,
    name: str,
    max_pixels: int,
    pixels: Callable[[Image.Image], np.ndarray] | None = None,
    already_open: bool = False,
) -> np.ndarray:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(name, f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BadImage(
            name, f"{width} x {height} pixels is larger than the limit of {max_pixels:,} pixels"
        )
    # Another library may have set this process-wide; Pillow then fills missing parts with grey.
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            turned = orientation(image)
            array = (pixels or to_rgb)(image)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        text = _first_line(error)
        if already_open:
            raise BadImage(name, f"cannot be converted to RGB ({text})") from None
        truncated = "truncated" in text or "nexpected end" in text or isinstance(error, EOFError)
        reason = "truncated: the file ends too early" if truncated else f"damaged ({text})"
        raise BadImage(name, reason) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
    return apply_orientation(array, turned)


def _describe_content(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what in _OTHER_CONTENT:
        if start.startswith(magic):
            return what
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        return "a HEIC photograph, which is not supported: convert it to JPEG"
    return "not an image, or in a format that is not supported"


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:120]

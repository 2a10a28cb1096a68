"""One image file -> uint8 RGB pixels, as a person sees them.

"As a person sees it" is fixed here once, so that every source agrees:
    orientation   the EXIF orientation is applied
    transparency  is laid on white (a page is white), whether it is an alpha channel, a palette
                  entry or a single transparent colour
    grey          is repeated into three channels
    16-bit grey   is scaled by its own range (65535 -> 255), never clipped
    32-bit grey   (integer or float) has no known range: its smallest value becomes black, its
                  largest white
    CMYK          is inverted when, and only when, an Adobe marker says that the file is; profiles
                  are not applied
    animation     shows its first frame
JPEG is decoded by simplejpeg where it is installed: the same pixels as Pillow's, a third sooner.
A file that ends too early is refused whole, never filled up with grey. One damage stays unseen: a
JPEG with data missing inside and a proper end, which the JPEG library itself passes as complete.
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

from nolabel.errors import BadImage

# Pillow's own limit: a quarter of a gibibyte at 24 bits a pixel.
MAX_PIXELS = 178_956_970

# More pixels than this in a byte of JPEG are a lie of its header (six bits for a block of 256 are
# the least, arithmetic coding aside), which would cost the memory of all of them.
_MAX_PIXELS_PER_BYTE = 2000

# An allow-list: Pillow also opens vector, scientific and container formats (EPS, PDF, FITS, HDF5)
# that run interpreters, hold no picture, or have been the home of security holes.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),  # a JPEG with more behind it; phones write it under the name .jpg
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

# What people have when it is none of the above; (bytes at the start, what to say).
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
    """Reads one image as a person sees it (the rules are at the top of this file).

    Args:
        source: a path, the bytes of a file, or a Pillow image.
        max_pixels: largest width x height accepted; checked from the header, before decoding.
        sufficient_pixels: number of pixels, height x width, that are enough. A JPEG may then come
            at a half, a quarter or an eighth of its sides, whichever is the smallest with at
            least as many pixels; decoding it so takes less than half the time. None gives every
            image at its full size.

    Returns:
        uint8 [H, W, 3], RGB, contiguous and writable.

    Raises:
        BadImage: the file is missing, empty, no image, of a format that is not on the allow-list,
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
    except (OSError, ValueError) as error:  # a failing disk; a name with a zero byte
        raise BadImage(path, f"cannot be read ({_first_line(error)})") from None


def open_regular(path: str) -> BinaryIO:
    """Opens a file to read. Raises OSError, or BadImage for a pipe, which would never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise BadImage(path, "not a regular file")
    return open(path, "rb")  # noqa: SIM115  the caller's


@contextlib.contextmanager
def decoding_in_threads() -> Iterator[None]:
    """Reading an image sets, and sets back, two switches of the whole process; threads that do so
    at once could leave them set. Here they are set back after the last thread."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


@functools.cache
def _available_formats() -> list[str]:
    """The formats that this build of Pillow opens by name (MPO it opens as JPEG)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decode_file(
    file: BinaryIO, name: str, max_pixels: int, sufficient_pixels: int | None = None
) -> np.ndarray:
    # Pillow warns about odd palettes, EXIF and sizes; the loader's list of bad files says what
    # matters, and a terminal with a progress bar is no place for the rest.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(file, name, max_pixels) as image:
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                pixels = _decode_jpeg(file, image, name, max_pixels, sufficient_pixels)
                if pixels is not None:
                    return _apply_orientation(pixels, _orientation(image))
            return _decode(image, name, max_pixels)


def decode(
    file: BinaryIO, name: str, max_pixels: int, pixels: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    """Opens and decodes an image; `pixels` makes [H, W, C] of it, which is turned upright.

    Raises:
        BadImage: as `read_image`, and in place of what `pixels` raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(file, name, max_pixels) as image:
            return _decode(image, name, max_pixels, pixels)


def open_image(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image of an allowed format; nothing is decoded yet. Raises BadImage."""
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


def _decode_jpeg(
    file: BinaryIO, image: Image.Image, name: str, max_pixels: int, sufficient_pixels: int | None
) -> np.ndarray | None:
    """uint8 [H, W, 3] of an opened JPEG; None where Pillow shall decode, or say what is wrong."""
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        return None
    size = file.seek(0, os.SEEK_END)
    if width * height > _MAX_PIXELS_PER_BYTE * size + 1_000_000:
        raise BadImage(name, f"damaged: {size:,} bytes cannot hold {width} x {height} pixels")
    file.seek(0)
    factor = 8 if sufficient_pixels else 1
    while sufficient_pixels and factor > 1 and width * height < sufficient_pixels * factor**2:
        factor //= 2
    least = (-(-height // factor), -(-width // factor))
    try:
        import simplejpeg
    except ImportError:
        if factor > 1:
            image.draft(image.mode, (width // factor or 1, height // factor or 1))
        return None
    try:
        return simplejpeg.decode_jpeg(file.read(), "RGB", min_height=least[0], min_width=least[1])
    except ValueError:  # damaged or unusual: Pillow decides
        file.seek(0)
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
    # Another library may have switched this on for the whole process; it fills with grey.
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            turn = _orientation(image)
            made = (pixels or _to_rgb)(image)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        what = _first_line(error)
        if already_open:
            raise BadImage(name, f"cannot be converted to RGB ({what})") from None
        cut = "truncated" in what or "nexpected end" in what or isinstance(error, EOFError)
        reason = "truncated: the file ends too early" if cut else f"damaged ({what})"
        raise BadImage(name, reason) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
    return _apply_orientation(made, turn)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or it is nonsense."""
    try:
        # Read after load(): a PNG may carry its EXIF behind the pixels, and Pillow has by then
        # already turned (and unmarked) a TIFF.
        value = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block does not make the pixels bad
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels [H, W, 3] upright, given how the camera was held."""
    match orientation:
        case 2:
            pixels = pixels[:, ::-1]
        case 3:
            pixels = pixels[::-1, ::-1]
        case 4:
            pixels = pixels[::-1]
        case 5:
            pixels = pixels.swapaxes(0, 1)
        case 6:
            pixels = np.rot90(pixels, -1)
        case 7:
            pixels = np.rot90(pixels, 2).swapaxes(0, 1)
        case 8:
            pixels = np.rot90(pixels)
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a loaded image, whatever its mode."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _repeat_grey(_scale_to_uint8(np.asarray(image), _white_level(image)))
    if mode == "I" and image.format in ("PNG", "PPM"):  # how Pillow holds their 16 bits
        return _repeat_grey(_scale_to_uint8(np.asarray(image), 65535))
    if mode in ("I", "F"):
        return _repeat_grey(_stretch_to_uint8(np.asarray(image)))
    if mode == "LAB":
        image = _lab_to_rgb(image)
    elif mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow undoes Adobe's inversion for every CMYK JPEG; without the marker it was not there.
        image = Image.frombytes("CMYK", image.size, bytes(~np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        image = page
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _white_level(image: Image.Image) -> int:
    """The value of white in a 16-bit grey image; a TIFF may use only 12 of the bits."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))
    return 4095 if bits == (12,) else 65535


def _scale_to_uint8(values: np.ndarray, white: int) -> np.ndarray:
    """uint8 [H, W] with 0 -> 0 and `white` -> 255, rounded to the nearest."""
    wide = np.clip(values, 0, white).astype(np.uint32)
    return ((wide * 255 + white // 2) // white).astype(np.uint8)


def _stretch_to_uint8(values: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: smallest finite value black, largest white; a constant image is black."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    if not finite.any():
        raise ValueError("no finite value")
    low, high = float(wide[finite].min()), float(wide[finite].max())
    wide = np.nan_to_num(wide, nan=low, posinf=high, neginf=low)
    return np.rint((wide - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


def _repeat_grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # some builds of Pillow lack it, and few files need it

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    turned = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert turned is not None  # noqa: S101 it returns None only when asked to work in place
    return turned


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

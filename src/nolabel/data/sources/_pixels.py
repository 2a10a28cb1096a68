"""Converts decoded Pillow images to arrays: orientation, transparency, depth and colour spaces.

The rules are those at the top of `_decode.py`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_STRIP_PIXELS = 2**20  # converted at once, so that a conversion needs no second whole image


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or it is invalid."""
    try:
        # Call after load(): a PNG may store its EXIF block after the pixels, and load() rotates a
        # TIFF and removes its orientation.
        value = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block does not make the pixels bad
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors pixels [H, W, C] by the EXIF orientation; contiguous."""
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


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts a loaded image of any mode to uint8 [H, W, 3]."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _repeat_grey(_scale_to_uint8(np.asarray(image), _white_level(image)))
    if mode == "I" and image.format in (
        "PNG",
        "PPM",
    ):  # Pillow's mode for 16-bit files of these formats
        return _repeat_grey(_scale_to_uint8(np.asarray(image), 65535))
    if mode in ("I", "F"):
        return _repeat_grey(_stretch_to_uint8(np.asarray(image)))
    if mode == "LAB":
        image = _lab_to_rgb(image)
    transparent = image.has_transparency_data
    out = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if transparent:
            strip.info = image.info
            strip = strip.convert("RGBA")
            background = Image.new("RGBA", strip.size, "white")
            background.alpha_composite(strip)
            strip = background
        out[top:bottom] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return out


def _white_level(image: Image.Image) -> int:
    """The value of white in a 16-bit grey image; a TIFF may use only 12 of its bits."""
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
    rgb = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert rgb is not None  # noqa: S101 it is None only with inPlace=True
    return rgb

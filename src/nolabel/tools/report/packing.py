"""Pictures of a report as WebP, without their white ground, so that they suit a dark page too."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

WHITE = 250  # from this value on, of all channels, a pixel is ground
TEXT = 24  # pixels; a band of rows of at most this height is a line of text
INK = 128  # grey of text and axes: readable on white and on black


def packed(image: np.ndarray, quality: int = 100, *, chart: bool = False) -> str:
    """A picture as a WebP data URI: lossless at quality 100, else at most 1200 px wide.

    Args:
        image: uint8 [H, W, 3].
        quality: of the compression, at most 100.
        chart: whether it is a chart, not tiles.
    """
    picture = Image.fromarray(without_ground(image, chart=chart))
    if quality < 100 and picture.width > 1200:
        picture = picture.resize((1200, max(picture.height * 1200 // picture.width, 1)))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=quality == 100, quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def without_ground(image: np.ndarray, *, chart: bool = False) -> np.ndarray:
    """A picture whose white margins are transparent, with text and axes in grey.

    Tiles keep every pixel. Nothing changes in a picture without margins.

    Args:
        image: uint8 [H, W, 3].
        chart: lines and text on white, of which nothing is a tile.

    Returns:
        uint8 [H, W, 4].
    """
    ground: np.ndarray = np.all(image >= WHITE, axis=-1)
    alpha = np.full(image.shape[:2], 255, np.uint8)
    out = np.dstack([image, alpha])
    if not ground[0].all() or not ground[:, 0].all():  # no margin: not drawn by us
        return out
    if chart:
        return _as_ink(out)
    for first, last in _bands(~np.all(ground, axis=1)):
        if last - first <= TEXT:
            out[first:last] = _as_ink(out[first:last])
        else:
            out[first:last, ground[first:last].all(0), 3] = 0
    out[ground.all(1), :, 3] = 0
    return out


def _bands(filled: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of each run of True in bool [N]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _as_ink(pixels: np.ndarray) -> np.ndarray:
    """Grey pixels uint8 [..., 4] as more or less of one grey ink; coloured ones stay."""
    colours = pixels[..., :3].astype(np.int16)
    grey = colours.max(-1) - colours.min(-1) < 12
    out = pixels.copy()
    out[grey, :3] = INK
    out[grey, 3] = np.clip(1.3 * (255 - colours[grey].mean(-1)), 0, 255).astype(np.uint8)
    return out

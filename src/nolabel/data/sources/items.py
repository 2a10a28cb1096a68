"""A list of paths, Pillow images and arrays as a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nolabel.data.source import Source
from nolabel.data.sources.arrays import is_allowed_dtype
from nolabel.errors import BadImage, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from nolabel.types import Sample

    Item = str | os.PathLike[str] | np.ndarray | Image


class Items(Source):
    """A list of images, each a path, a Pillow image or an array.

    Args:
        items: paths, Pillow images, and uint8 arrays [H, W, C] or grey [H, W]; sizes may differ.
            Unless `channels` is 3, arrays may be uint16 too, and Pillow images are not allowed.
        name: name of the source, for messages.
        channels: number of channels C of every image.

    Raises:
        UsageError: an item has another type, or is an array of another dtype or shape.
    """

    supports_draft = True

    def __init__(self, items: Sequence[Item], name: str = "list", channels: int = 3):
        self.name, self.channels = name, channels
        self.items = list(items)
        for i, item in enumerate(self.items):
            _check_item(i, item, channels)

    def __len__(self) -> int:
        return len(self.items)

    def path(self, i: int, /) -> str:
        """The path of item i, or `list[i]` for pixels."""
        item = self.items[i]
        return os.fspath(item) if isinstance(item, str | os.PathLike) else f"{self.name}[{i}]"

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Item i as an image; a path is read and decoded. Raises BadImage."""
        from nolabel.data.sources._bands import read_bands
        from nolabel.data.sources._decode import read_image
        from nolabel.types import Sample

        item = self.items[i]
        if isinstance(item, np.ndarray):
            grey = self.channels == 1 and item.ndim == 2
            return Sample(image=item[..., None].copy() if grey else as_rgb(item))
        try:
            if isinstance(item, str | os.PathLike) and self.channels != 3:
                return Sample(image=read_bands(item, self.channels))
            return Sample(image=read_image(item, sufficient_pixels=sufficient_pixels))
        except BadImage as error:
            raise BadImage(self.path(i), error.reason) from None


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """A copy of uint8 [H, W, C], or of grey [H, W] as [H, W, 3]."""
    return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels.copy()


def _check_item(i: int, item: object, channels: int) -> None:
    """Checks type, dtype and shape of item i. Raises UsageError."""
    if isinstance(item, str | os.PathLike):
        return
    if isinstance(item, np.ndarray):
        grey = item.ndim == 2 and channels in (1, 3)
        if is_allowed_dtype(item, channels) and (grey or item.shape[2:] == (channels,)):
            return
        got = f"an array {item.dtype} {list(item.shape)}"
    else:
        from PIL import Image

        if isinstance(item, Image.Image) and channels == 3:
            return
        got = type(item).__name__
    raise UsageError(
        f"Item {i} of the list is {got}; allowed are paths, Pillow images, and uint8 arrays "
        f"[H, W, {channels}] or [H, W]."
    )

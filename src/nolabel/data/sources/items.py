"""Images that the caller has in memory or as a list of paths, as sources."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nolabel.data.source import Source
from nolabel.errors import BadImage, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from nolabel.types import Sample

    Item = str | os.PathLike[str] | np.ndarray | Image


class Arrays(Source):
    """Images of one size held in memory.

    Args:
        name: for messages.
        pixels: uint8 [N, H, W, 3], or grey [N, H, W], which stays grey in memory. With other than
            three `channels`, uint8 or uint16 [N, H, W, C], or grey [N, H, W] for one.
        labels: int64 [N] or None.
        classes: name of each label.
        channels: channels C.

    Raises:
        UsageError: pixels of another type or shape.
    """

    in_memory = True

    def __init__(
        self,
        name: str,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        channels: int = 3,
    ):
        grey = pixels.ndim == 3 and channels in (1, 3)
        if not _allowed_type(pixels, channels) or not (
            grey or (pixels.ndim == 4 and pixels.shape[-1] == channels)
        ):
            raise UsageError(
                f"Images must be uint8 [N, H, W, {channels}] or grey [N, H, W], got "
                f"{pixels.dtype} {list(pixels.shape)}."
            )
        self.name, self.channels = name, channels
        self.pixels = pixels
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i as a copy of its own."""
        from nolabel.types import Sample

        return Sample(image=self.images(np.array([i]))[0], label=self.label(i))

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 or uint16 [B, H, W, C] of the images at `indices`, int [B]; a copy."""
        some = self.pixels[indices]
        return some if some.ndim == 4 else np.repeat(some[..., None], self.channels, axis=-1)


class Items(Source):
    """A list of paths, Pillow images and arrays ([H, W, C] or grey [H, W]), mixed.

    Args:
        items: the list; sizes may differ.
        name: for messages.
        channels: channels C of every image.

    Raises:
        UsageError: an item is none of these, or an array of another type or shape.
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
        """Item i, decoded when it is a path. Raises BadImage."""
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
    """A copy as uint8 [H, W, 3] of uint8 [H, W, 3] or grey [H, W]."""
    return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels.copy()


def _allowed_type(pixels: np.ndarray, channels: int) -> bool:
    """Photographs are 8 bits deep; images of other channels may have 16."""
    return pixels.dtype in ((np.uint8,) if channels == 3 else (np.uint8, np.uint16))


def _check_item(i: int, item: object, channels: int) -> None:
    """Refuses at once what could only fail later, far from its cause."""
    if isinstance(item, str | os.PathLike):
        return
    if isinstance(item, np.ndarray):
        grey = item.ndim == 2 and channels in (1, 3)
        if _allowed_type(item, channels) and (grey or item.shape[2:] == (channels,)):
            return
        got = f"an array {item.dtype} {list(item.shape)}"
    else:
        from PIL import Image

        if isinstance(item, Image.Image) and channels == 3:
            return
        got = f"{type(item).__name__}"
    raise UsageError(
        f"Item {i} of the list is {got}; allowed are paths, Pillow images, and uint8 arrays "
        f"[H, W, {channels}] or [H, W]."
    )

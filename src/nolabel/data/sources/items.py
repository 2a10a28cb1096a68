"""A list of images of the caller's as a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nolabel.errors import UsageError

if TYPE_CHECKING:
    from nolabel.types import Sample


class Items:
    """A list of paths, Pillow images and arrays ([H, W, C] or grey [H, W]), mixed."""

    in_memory = False  # sizes may differ
    reduces = True

    def __init__(self, items: Sequence[Any], name: str = "list", channels: int = 3):
        self.name, self.channels = name, channels
        self.items = list(items)
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] = ()
        for i, item in enumerate(self.items):
            _check_item(i, item, channels)

    def __len__(self) -> int:
        return len(self.items)

    def path(self, i: int, /) -> str:
        """The path of item i, or `list[i]` for pixels."""
        item = self.items[i]
        return os.fspath(item) if isinstance(item, str | os.PathLike) else f"{self.name}[{i}]"

    def read(self, i: int, /, enough: int | None = None) -> Sample:
        """Item i, decoded when it is a path.  Raises BadImage."""
        from nolabel.data.sources._bands import read_bands
        from nolabel.data.sources._decode import read_image
        from nolabel.errors import BadImage
        from nolabel.types import Sample

        item = self.items[i]
        if isinstance(item, np.ndarray):
            grey = self.channels == 1 and item.ndim == 2
            return Sample(image=item[..., None].copy() if grey else as_rgb(item))
        try:
            if self.channels == 3:
                return Sample(image=read_image(item, enough=enough))
            return Sample(image=read_bands(item, self.channels))
        except BadImage as error:
            raise BadImage(self.path(i), error.reason) from None


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """A copy as uint8 [H, W, 3] of uint8 [H, W, 3] or grey [H, W]."""
    return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels.copy()


def _check_item(i: int, item: Any, channels: int) -> None:
    """Refuses at once what could only fail later, far from its cause."""
    if isinstance(item, str | os.PathLike):
        return
    if isinstance(item, np.ndarray):
        kinds = (np.uint8,) if channels == 3 else (np.uint8, np.uint16)
        grey = item.ndim == 2 and channels in (1, 3)
        if item.dtype in kinds and (grey or item.shape[2:] == (channels,)):
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

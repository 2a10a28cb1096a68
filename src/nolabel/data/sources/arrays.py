"""Images of one size in memory as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nolabel.data.source import Source
from nolabel.errors import UsageError

if TYPE_CHECKING:
    from nolabel.types import Sample


class Arrays(Source):
    """Images of one size, in one array.

    Args:
        name: name of the source, for messages.
        pixels: uint8 [N, H, W, 3], or grey [N, H, W], which is repeated into three channels only
            when read. Unless `channels` is 3: uint8 or uint16 [N, H, W, C], or grey [N, H, W] for
            one channel.
        labels: int64 [N] or None.
        classes: name of each label.
        channels: number of channels C.

    Raises:
        UsageError: pixels of another dtype or shape.
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
        if not is_allowed_dtype(pixels, channels) or not (
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
        """A copy of image i."""
        from nolabel.types import Sample

        return Sample(image=self.images(np.array([i]))[0], label=self.label(i))

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """Copies of the images at `indices`, int [B]: uint8 or uint16 [B, H, W, C]."""
        batch = self.pixels[indices]
        return batch if batch.ndim == 4 else np.repeat(batch[..., None], self.channels, axis=-1)


def is_allowed_dtype(pixels: np.ndarray, channels: int) -> bool:
    """Whether pixels are uint8, or uint16 for images of other than three channels."""
    return pixels.dtype in ((np.uint8,) if channels == 3 else (np.uint8, np.uint16))

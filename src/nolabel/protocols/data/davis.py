"""Videos with object masks: the layout of DAVIS-2017, and videos of creatures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nolabel.errors import BadImage, DataError, UsageError

VIDEOS = 20  # number of videos of creatures
VOID = 255  # label of mask pixels to ignore


@dataclass(frozen=True)
class Clip:
    """One video.

    Attributes:
        name: name of the video.
        length: number of frames.
        frame: index of a frame -> uint8 [H, W, 3].
        mask: index of a frame -> uint8 [H, W]: 0 background, 1.. objects, 255 void.
    """

    name: str
    length: int
    frame: Callable[[int], np.ndarray]
    mask: Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Clips:
    """A named set of videos."""

    name: str
    clips: tuple[Clip, ...]


def open_clips(spec: str | os.PathLike[str] | Clips, image_size: int) -> Clips:
    """Opens videos with masks.

    Args:
        spec: `creatures` (`:train`, `:test`), a folder in the layout of DAVIS-2017, or `Clips`.
        image_size: side in pixels at which creatures are drawn.

    Raises:
        UsageError: neither.
        DataError: a video of the list is missing, or its frames and masks do not match.
    """
    if isinstance(spec, Clips):
        return spec
    text = os.fspath(spec)
    name, _, split = text.partition(":")
    if name == "creatures":
        return Clips(
            f"creatures:{split or 'test'} (videos)",
            tuple(_creatures(i, image_size, split or "test") for i in range(VIDEOS)),
        )
    list_file = Path(text) / "ImageSets" / "2017" / "val.txt"
    if not list_file.is_file():
        raise UsageError(
            f"No videos with masks in {text!r}. Give creatures, or a folder in the layout of "
            "DAVIS-2017: ImageSets/2017/val.txt, JPEGImages/480p/VIDEO, Annotations/480p/VIDEO."
        )
    names = [line.strip() for line in list_file.read_text().splitlines() if line.strip()]
    if not names:
        raise DataError(f"{str(list_file)!r} lists no video. Write one name per line.")
    return Clips(text, tuple(_davis(Path(text), n) for n in names))


def _creatures(index: int, size: int, split: str) -> Clip:
    from nolabel.data.creatures.videos import FRAMES, draw_video

    cache: list[tuple[np.ndarray, np.ndarray]] = []

    def draw_once() -> tuple[np.ndarray, np.ndarray]:
        if not cache:
            cache.append(draw_video(index, size=size, split=split))
        return cache[0]

    return Clip(
        f"creatures {index}", FRAMES, lambda t: draw_once()[0][t], lambda t: draw_once()[1][t]
    )


def _davis(root: Path, name: str) -> Clip:
    frames = sorted((root / "JPEGImages" / "480p" / name).glob("*.jpg"))
    masks = sorted((root / "Annotations" / "480p" / name).glob("*.png"))
    if not frames or [p.stem for p in frames] != [p.stem for p in masks]:
        raise DataError(
            f"The video {name!r} in {str(root)!r} has {len(frames)} frames and {len(masks)} masks; "
            "every frame needs a mask of its name."
        )

    return Clip(
        name,
        len(frames),
        lambda t: read_picture(frames[t], "A frame"),
        lambda t: read_mask(masks[t]),
    )


def read_picture(path: str | os.PathLike[str], what: str) -> np.ndarray:
    """Reads an image file.

    Args:
        path: the file.
        what: description of the image, for the error message.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: it cannot be read.
    """
    from nolabel.data.sources._decode import read_image

    try:
        return read_image(os.fspath(path))
    except BadImage as error:
        raise DataError(f"{what} cannot be read: {error}.") from None


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a mask: a PNG with a palette, or grey, whose values are object numbers.

    Args:
        path: the file.

    Returns:
        uint8 [H, W].

    Raises:
        DataError: it cannot be read, or has colours instead of numbers.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise DataError(
                    f"The mask {os.fspath(path)!r} has colours ({image.mode}); object numbers "
                    "are needed. Give a PNG with a palette, or grey."
                )
            return np.array(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"The mask {os.fspath(path)!r} cannot be read: {error}.") from None

"""Images with the mask of what they show: PASCAL VOC's layout, and creatures."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nolabel.errors import DataError, UsageError
from nolabel.protocols.data.davis import VOID, read_mask, read_picture

CREATURES = 500  # of each split


class Pairs(ABC):
    """Numbered pairs of an image uint8 [H, W, 3] and its mask uint8 [H, W]."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Figures:
    """Pairs of images and masks.

    Attributes:
        name: of the set.
        pairs: number -> image uint8 [H, W, 3] and mask uint8 [H, W]: 1 figure, 255 void.
    """

    name: str
    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.pairs[i] for i in range(len(self.pairs)))


def open_figures(spec: str | os.PathLike[str], split: str, image_size: int) -> Figures:
    """Opens one split of a set with masks.

    Args:
        spec: `creatures`, or a folder in the layout of PASCAL VOC.
        split: "train" or "val"; creatures' "val" is their test split.
        image_size: side in pixels at which creatures are drawn.

    Raises:
        UsageError: neither, or no such split.
        DataError: the split lists an image that has no mask.
    """
    text = os.fspath(spec)
    if text.partition(":")[0] == "creatures":
        part = "test" if split == "val" else split
        return Figures(f"creatures:{part}", _Drawn(part, image_size))
    lists = Path(text) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not lists.is_file():
        raise UsageError(
            f"No images with masks in {text!r}: {str(lists)!r} is missing. Give creatures, or a "
            "folder in the layout of PASCAL VOC: ImageSets/Segmentation/train.txt and val.txt, "
            "JPEGImages, SegmentationClass."
        )
    names = [line.strip() for line in lists.read_text().splitlines() if line.strip()]
    pairs = [
        (Path(text) / "JPEGImages" / f"{n}.jpg", Path(text) / "SegmentationClass" / f"{n}.png")
        for n in names
    ]
    missing = [str(p) for pair in pairs for p in pair if not p.is_file()]
    if missing or not pairs:
        what = (
            f"{len(missing)} files are missing, first {missing[0]!r}" if missing else "it is empty"
        )
        raise DataError(f"The list {str(lists)!r} cannot be used: {what}.")
    return Figures(f"{text} ({split})", _Files(pairs))


class _Drawn(Pairs):
    """Creatures with their masks."""

    def __init__(self, split: str, size: int):
        from nolabel.data.creatures.world import Creatures

        self.source = Creatures(split, size=size, count=CREATURES)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.source.read(i)
        assert sample.mask is not None  # noqa: S101 - creatures have masks
        return sample.image, sample.mask


class _Files(Pairs):
    """Images with masks by class; every class counts as figure."""

    def __init__(self, pairs: list[tuple[Path, Path]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        image = read_picture(self.pairs[i][0], "An image")
        mask = read_mask(self.pairs[i][1])
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"The mask {str(self.pairs[i][1])!r} has {mask.shape[1]} x {mask.shape[0]} pixels, "
                f"its image {image.shape[1]} x {image.shape[0]}."
            )
        return image, np.where(mask == VOID, VOID, mask > 0).astype(np.uint8)

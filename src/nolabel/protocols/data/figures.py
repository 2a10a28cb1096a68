"""Images with masks of their figure: the layout of PASCAL VOC, and creatures."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nolabel.errors import DataError, UsageError
from nolabel.protocols.data.davis import VOID, read_mask, read_picture

CREATURES = 500  # number of images of each split


class Pairs(ABC):
    """Sequence of images uint8 [H, W, 3] with masks uint8 [H, W]: 0 ground, 1 figure, 255 void."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Figures:
    """A named set of images with masks.

    Attributes:
        name: name of the set.
        pairs: the images and masks.
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
        creature_split = "test" if split == "val" else split
        return Figures(f"creatures:{creature_split}", _CreaturePairs(creature_split, image_size))
    list_file = Path(text) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not list_file.is_file():
        raise UsageError(
            f"No images with masks in {text!r}: {str(list_file)!r} is missing. Give creatures, or "
            "a folder in the layout of PASCAL VOC: ImageSets/Segmentation/train.txt and val.txt, "
            "JPEGImages, SegmentationClass."
        )
    names = [line.strip() for line in list_file.read_text().splitlines() if line.strip()]
    pairs = [
        (Path(text) / "JPEGImages" / f"{n}.jpg", Path(text) / "SegmentationClass" / f"{n}.png")
        for n in names
    ]
    missing = [str(p) for pair in pairs for p in pair if not p.is_file()]
    if missing or not pairs:
        problem = (
            f"{len(missing)} files are missing, first {missing[0]!r}" if missing else "it is empty"
        )
        raise DataError(
            f"The list {str(list_file)!r} cannot be used: {problem}. Each line names a file in "
            "JPEGImages and in SegmentationClass."
        )
    return Figures(f"{text} ({split})", _VocPairs(pairs))


class _CreaturePairs(Pairs):
    """Creatures with their masks, drawn when they are read."""

    def __init__(self, split: str, size: int):
        from nolabel.data.creatures.world import Creatures

        self.source = Creatures(split, size=size, count=CREATURES)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.source.read(i)
        assert sample.mask is not None  # noqa: S101 - creatures have masks
        return sample.image, sample.mask


class _VocPairs(Pairs):
    """Files in the layout of PASCAL VOC; every class is figure."""

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

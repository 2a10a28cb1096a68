"""Named sets as files: `fashion` (Fashion-MNIST) and `creatures`."""

from __future__ import annotations

from collections.abc import Iterator

from .files import File, png

FASHION_COUNTS = {"train": 60_000, "test": 10_000}
CREATURES_COUNTS = {"train": 10_000, "test": 2_000}


def fashion(split: str, count: int, seed: int) -> Iterator[File]:
    """Grey PNG files of 28 x 28 pixels, in the order of the set; there is nothing to draw."""
    yield from _files(f"fashion-mnist:{split}", count, grey=True)


def creatures(split: str, count: int, seed: int) -> Iterator[File]:
    """PNG files of 32 x 32 pixels, in the order of the set, which has a seed of its own."""
    yield from _files(f"creatures:{split}", count)


def _files(name: str, count: int, *, grey: bool = False) -> Iterator[File]:
    from nolabel.data.open import open_source

    source = open_source(name)
    for i in range(min(count, len(source))):
        sample = source.read(i)
        pixels = sample.image[..., 0] if grey else sample.image
        yield File(source.classes[sample.label or 0], ".png", png(pixels))

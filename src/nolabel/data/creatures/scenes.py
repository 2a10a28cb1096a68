"""Scenes: one to four creatures in an image, with a caption that counts and relates them.

The same world as `creatures`, for learning from captions and for the probes of counting and
relations. Every run of four images holds each number once, shuffled.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nolabel.data.creatures.raster import raster
from nolabel.data.creatures.world import (
    DRAWN,
    Creatures,
    Scene,
    _draw,
    _uniform,
    draw_scene,
    render,
)
from nolabel.types import Sample

MOST = 4  # creatures in an image
_STREAM = 9  # of the uniform numbers: creatures use 0 to 6


class Scenes(Creatures):
    """Images of one to four creatures with captions; the label is how many, less one.

    Args:
        split: "train" or "test"; the two never share a scene.
        size: height and width in pixels.
        count: number of images; 10,000 (train) or 2,000 (test) if not given.
        seed: of the whole world.
    """

    classes = ("one", "two", "three", "four")

    def __init__(
        self, split: str = "train", size: int = 32, count: int | None = None, seed: int = 0
    ):
        super().__init__(split, size, count, seed)
        self.name = f"scenes:{split}"
        index = np.arange(len(self))
        order = _uniform(seed, split, index // MOST, _STREAM, MOST).argsort(axis=1)
        self.labels = order[index, index % MOST].astype(np.int64)
        self._captions: tuple[str, ...] = ()

    def scene(self, index: int) -> Scene:
        """The description of an image, to render at another size or to change."""
        self._check_indices(np.array([index]))
        number = int(self.labels[index]) + 1
        return draw_scene(int(index), split=self.split, seed=self.seed, creatures=number)

    def read(self, index: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """One image with its caption, mask and parts; its label counts the creatures."""
        return replace(render(self.scene(index), self.size), label=int(self.labels[index]))

    def read_texts(self, indices: np.ndarray, /) -> tuple[str, ...]:
        """Captions of the images at `indices`, int [N]."""
        which = np.asarray(indices, np.int64)
        self._check_indices(which)
        if not self._captions:  # all at once, and kept: one by one they would take long
            found: dict[int, str] = {}
            for rows, creatures, grounds in self._drawn(np.arange(len(self))):
                for i, c, g in zip(rows, creatures, grounds, strict=True):
                    found[int(i)] = Scene(c, g).caption
            self._captions = tuple(found[i] for i in range(len(self)))
        return tuple(self._captions[i] for i in which)

    def _drawn(self, which: np.ndarray):  # noqa: ANN202 - rows, creatures and grounds, in parts
        """Scenes at `which`, those with the same number of creatures together."""
        for number in range(1, MOST + 1):
            rows = which[self.labels[which] == number - 1]
            for start in range(0, len(rows), DRAWN):
                some = rows[start : start + DRAWN]
                yield some, *_draw(self.seed, self.split, some, number)

    def _render(self, which: np.ndarray) -> np.ndarray:
        out = np.empty((len(which), self.size, self.size, 3), np.uint8)
        for rows, creatures, grounds in self._drawn(which):
            out[np.searchsorted(which, rows)] = raster(creatures, grounds, self.size)[0]
        return out

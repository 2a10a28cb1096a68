"""Scenes of one to four creatures, with captions of their number and relative positions.

Rendered like `creatures`; for image-text learning and for probes of counting and relations. Of
every four consecutive images, each has another number of creatures, in random order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from nolabel.data.creatures.raster import raster
from nolabel.data.creatures.sampling import CHUNK, Scene, draw_arrays, draw_scene, keyed_uniform
from nolabel.data.creatures.world import Creatures, render
from nolabel.types import Sample

MAX_CREATURES = 4  # creatures in an image
_STREAM = 9  # stream of `keyed_uniform`; creatures use 0 to 6


class Scenes(Creatures):
    """Images of one to four creatures with captions; the label is their number minus one.

    Args:
        split: "train" or "test"; the two never share a scene.
        size: height and width in pixels.
        count: number of images; 10,000 (train) or 2,000 (test) if not given.
        seed: seed of all scenes.
    """

    classes = ("one", "two", "three", "four")

    def __init__(
        self, split: str = "train", size: int = 32, count: int | None = None, seed: int = 0
    ):
        super().__init__(split, size, count, seed)
        self.name = f"scenes:{split}"
        index = np.arange(len(self))
        block, place = index // MAX_CREATURES, index % MAX_CREATURES
        order = keyed_uniform(seed, split, block, _STREAM, MAX_CREATURES).argsort(axis=1)
        self.labels = order[index, place].astype(np.int64)
        self._captions: tuple[str, ...] = ()

    def scene(self, index: int) -> Scene:
        """The description of image i, for rendering at another size or for editing."""
        self._check_indices(np.array([index]))
        number = int(self.labels[index]) + 1
        return draw_scene(int(index), split=self.split, seed=self.seed, creatures=number)

    def read(self, index: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i with caption, mask and parts; its label is the number of creatures minus one."""
        return replace(render(self.scene(index), self.size), label=int(self.labels[index]))

    def read_texts(self, indices: np.ndarray, /) -> tuple[str, ...]:
        """Captions of the images at `indices`, int [B]."""
        array = np.asarray(indices, np.int64)
        self._check_indices(array)
        if not self._captions:  # made for the whole set and cached: one by one is slow
            captions: dict[int, str] = {}
            for rows, creatures, grounds in self._draw_by_number(np.arange(len(self))):
                for i, c, g in zip(rows, creatures, grounds, strict=True):
                    captions[int(i)] = Scene(c, g).caption
            self._captions = tuple(captions[i] for i in range(len(self)))
        return tuple(self._captions[i] for i in array)

    def _draw_by_number(
        self, indices: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Draws scenes, those with the same number of creatures together.

        Yields:
            Indices int64 [B], creatures [B, M] of dtype CREATURE, grounds [B] of dtype GROUND.
        """
        for number in range(1, MAX_CREATURES + 1):
            rows = indices[self.labels[indices] == number - 1]
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                creatures, grounds = draw_arrays(self.seed, self.split, chunk, number)
                yield chunk, creatures, grounds

    def _render(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for rows, creatures, grounds in self._draw_by_number(indices):
            out[np.searchsorted(indices, rows)] = raster(creatures, grounds, self.size)[0]
        return out

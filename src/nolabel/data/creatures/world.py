"""The data set `creatures`: procedural images with ground truth.

Ten kinds of creature in random colour, pattern, pose, size and position on soft coloured grounds,
rendered in memory from (seed, split, index). Labels, masks, parts, keypoints and captions come from
the same description as the pixels (`Scene`). It is in units of the image's side, so that a scene
can be rendered at any size.

The difficulty was chosen by measurement. With 10,000 train and 2,000 test images of 32 x 32
pixels and seed 0, top-1 on test by k-NN (cosine, k = 20, votes weighted at temperature 0.07) is
35.0 % on raw pixels (38.2 % with the mean image subtracted) and 18 to 20 % on the features of
randomly initialised networks (ViT of width 128, ResNet-18, a five-layer convolutional network).
That last network reaches 97.6 % in 60 s of supervised training on two processor cores. With
SimCLR and without labels its features' k-NN reaches 74.5 % in 120 s on the same two cores
(12.5 epochs, batch 256, AdamW 3e-3, temperature 0.2, crops of 30 to 100 %, flips, jitter of
brightness, contrast and saturation 0.32, any hue, half of the views grey). Colour is a shortcut
here, since it distinguishes images but not kinds: with little hue jitter and few grey views, the
same training learns much more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nolabel.data.creatures.plans import KEYPOINTS, KINDS, PARTS
from nolabel.data.creatures.raster import raster
from nolabel.data.creatures.sampling import (
    CHUNK,
    COLOURS,
    SPLITS,
    Scene,
    check_split,
    draw_arrays,
    draw_kinds,
    draw_scene,
    single_captions,
)
from nolabel.data.source import Source
from nolabel.errors import UsageError
from nolabel.types import Sample

__all__ = ["COLOURS", "KEYPOINTS", "KINDS", "PARTS", "Creatures", "Scene", "draw_scene", "render"]

MIN_SIZE = 16  # pixels; in smaller images, legs are thinner than half a pixel
CACHE_BYTES = 512 * 2**20  # larger sets are rendered on every read instead of cached
SHARED_BYTES = 128 * 2**20  # size of the cache that sets share within a process


def render(scene: Scene, size: int = 32) -> Sample:
    """Renders a scene and its ground truth.

    Args:
        scene: the scene.
        size: height and width in pixels, 16 or more.

    Returns:
        image: uint8 [size, size, 3].
        label: index of the creatures' kind in KINDS; None if they differ.
        text: the caption.
        mask: uint8 [size, size], 1 = creature.
        parts: uint8 [size, size], indices into PARTS.
        keypoints: float32 [M * len(KEYPOINTS), 3], creature by creature: x, y in pixels (the centre
            of the first pixel is at 0.5) and 1 if the kind has the keypoint, else (0, 0, 0).

    Raises:
        UsageError: a size below 16.
    """
    check_size(size)
    images, parts, keypoints = raster(scene.creatures[None], scene.ground[None], size)
    kinds = {int(k) for k in scene.creatures["kind"]}
    return Sample(
        image=images[0],
        label=kinds.pop() if len(kinds) == 1 else None,
        text=scene.caption,
        mask=(parts[0] > 0).astype(np.uint8),
        parts=parts[0],
        keypoints=keypoints[0],
    )


def check_size(size: int) -> None:
    """Raises UsageError for a size below MIN_SIZE pixels."""
    if size < MIN_SIZE:
        raise UsageError(
            f"Creatures cannot be recognised at {size} pixels. Use a size of {MIN_SIZE} or more; "
            "32 is the usual one."
        )


class _ImageCache:
    """Cache of rendered images: uint8 [count, size, size, 3], and which of them are there."""

    def __init__(self, count: int, size: int):
        self.images = np.empty((count, size, size, 3), np.uint8)
        self.ready = np.zeros(count, bool)


_CACHES: dict[tuple[object, ...], _ImageCache] = {}  # least recently used first


def _shared_cache(key: tuple[object, ...], count: int, size: int) -> _ImageCache:
    """The process-wide cache for a set, so that a set opened again is not rendered again.

    Args:
        key: what determines the images: class, split, size and seed.
        count: number of images.
        size: height and width in pixels.
    """
    cache = _CACHES.pop(key, None)
    if cache is None or len(cache.ready) < count:
        larger = _ImageCache(count, size)
        if cache is not None:  # a smaller set is a prefix of a larger one
            larger.images[: len(cache.ready)] = cache.images
            larger.ready[: len(cache.ready)] = cache.ready
        cache = larger
    if cache.images.nbytes <= SHARED_BYTES:
        _CACHES[key] = cache
    while sum(c.images.nbytes for c in _CACHES.values()) > SHARED_BYTES:
        del _CACHES[next(iter(_CACHES))]
    return cache


class Creatures(Source):
    """Images of one creature each, rendered on first access.

    Args:
        split: "train" or "test"; the two never share a scene.
        size: height and width in pixels, 16 or more.
        count: number of images; None means 10,000 (train) or 2,000 (test). A smaller set is a
            prefix of a larger one.
        seed: seed of all scenes.
    """

    classes = KINDS
    in_memory = True
    labels: np.ndarray

    def __init__(
        self, split: str = "train", size: int = 32, count: int | None = None, seed: int = 0
    ):
        check_split(split)
        check_size(size)
        self.split, self.size, self.seed = split, size, seed
        self.name = f"creatures:{split}"
        self.labels = draw_kinds(seed, split, np.arange(SPLITS[split] if count is None else count))
        self._cache: _ImageCache | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, object]:
        # A copy in another process renders its own images, which is faster than sending them.
        return {**self.__dict__, "_cache": None}

    def path(self, index: int, /) -> str:
        """A name for the image, `creatures:train/00012`."""
        return f"{self.name}/{index:05d}"

    def scene(self, index: int) -> Scene:
        """The description of an image, for rendering at another size or for editing."""
        self._check_indices(np.array([index]))
        return draw_scene(int(index), split=self.split, seed=self.seed)

    def read(self, index: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """One image with its caption and all ground truth."""
        return render(self.scene(index), self.size)

    def read_text(self, index: int, /) -> str:
        """The caption of an image."""
        return self.read_texts(np.array([index]))[0]

    def read_texts(self, indices: np.ndarray, /) -> tuple[str, ...]:
        """Captions of the images at `indices`, int [B], without rendering them."""
        array = np.asarray(indices, np.int64)
        self._check_indices(array)
        return single_captions(self.seed, self.split, array)

    def images(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Images at `indices`, int [B], None for all: uint8 [B, H, W, 3], no ground truth."""
        array = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        self._check_indices(array)
        if len(self) * self.size**2 * 3 > CACHE_BYTES:
            unique, inverse = np.unique(array, return_inverse=True)
            return self._render(unique)[inverse]
        if self._cache is None:
            key = (type(self), self.split, self.size, self.seed)
            self._cache = _shared_cache(key, len(self), self.size)
        cache = self._cache
        missing = np.unique(array[~cache.ready[array]])
        cache.images[missing] = self._render(missing)
        cache.ready[missing] = True
        return cache.images[array]

    def _render(self, indices: np.ndarray) -> np.ndarray:
        """Renders the images at `indices`, int64 [B], ascending, distinct: uint8 [B, H, W, 3]."""
        out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for start in range(0, len(indices), CHUNK):
            scenes = draw_arrays(self.seed, self.split, indices[start : start + CHUNK])
            out[start : start + CHUNK] = raster(*scenes, self.size)[0]
        return out

    def _check_indices(self, indices: np.ndarray) -> None:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"{self.name} has images 0 to {len(self) - 1}.")

"""Creatures: a small world, drawn rather than collected, with ground truth for every image.

Ten kinds of creature in random colour, pattern, pose, size and place on soft coloured grounds,
made in memory from (seed, index). Labels, masks, parts, keypoints and captions come from the
same description as the pixels. That description (`Scene`) is in units of the image's side, so one
scene can be rendered at any size.

How hard it is was chosen by measurement. With 10,000 train and 2,000 test images of 32 x 32
pixels and seed 0, top-1 on test by k-NN (cosine, k = 20, votes weighted at temperature 0.07) is
35.0 % on raw pixels (38.2 % with the mean image subtracted) and 18 to 20 % on the features of
randomly initialised networks (ViT of width 128, ResNet-18, a five-layer convolutional network).
That last network reaches 97.6 % in 60 s of supervised training on two processor cores. With
SimCLR and without labels its features' k-NN reaches 74.5 % in 120 s on the same two cores
(12.5 epochs, batch 256, AdamW 3e-3, temperature 0.2, crops of 30 to 100 %, flips, jitter of
brightness, contrast and saturation 0.32, hue anywhere, half of the views grey). Colour is a
shortcut here, since it tells images but not kinds apart: with little change of hue and few grey
views, the same training learns much more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nolabel.data.creatures.plans import KEYPOINTS, KINDS, PARTS, POSE, TONES
from nolabel.data.creatures.raster import BLOBS, CREATURE, GROUND, placed, raster
from nolabel.data.source import Source
from nolabel.errors import UsageError, unknown
from nolabel.nn.splitmix64 import GOLDEN, mix
from nolabel.types import Sample

__all__ = ["KEYPOINTS", "KINDS", "PARTS", "Creatures", "Scene", "draw_scene", "render"]

SPLITS: dict[str, int] = {"train": 10_000, "test": 2_000}  # name -> number of images
MIN_SIZE = 16  # pixels; below, legs are thinner than half a pixel
CACHE_BYTES = 512 * 2**20  # larger image sets are rendered on request instead of kept
SHARED_BYTES = 128 * 2**20  # of the sets that are cached for the next one who opens them
DRAWN = 512  # scenes described at once: enough to make Python's share of the time small

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.18, 0.15),
    "orange": (0.96, 0.55, 0.12),
    "yellow": (0.97, 0.86, 0.25),
    "green": (0.22, 0.62, 0.26),
    "blue": (0.18, 0.36, 0.85),
    "purple": (0.52, 0.24, 0.70),
    "pink": (0.97, 0.58, 0.74),
    "brown": (0.46, 0.28, 0.15),
    "white": (0.94, 0.94, 0.92),
    "black": (0.16, 0.16, 0.19),
}
_NAMES = tuple(COLOURS)
_RGB = np.array(list(COLOURS.values()))
# The ground's lightness decides which colours a creature may have, so that a person can always
# tell it from the ground.
_ON_DARK = np.array([0, 1, 2, 3, 6, 8])  # red, orange, yellow, green, pink, white
_ON_LIGHT = np.array([0, 3, 4, 5, 7, 9])  # red, green, blue, purple, brown, black
MAX_TILT = 0.8  # radians
MIN_SHARE, MAX_SHARE = 0.46, 0.82  # of the room's tighter side that the creature's extent takes
_GROUNDS = 7  # the first seven colours also serve as grounds, in a light and in a dark version


@dataclass(frozen=True)
class Scene:
    """One image, described in units of its side. Change a copy's arrays to animate it."""

    creatures: np.ndarray  # [M] of dtype CREATURE, the last one nearest
    ground: np.ndarray  # [] of dtype GROUND

    @property
    def caption(self) -> str:
        """What it shows: number, colour and kind, relation of the first two, and the ground."""
        names = [_name(c["colour"], c["kind"]) for c in self.creatures]
        where = _where(self.ground["dark"], self.ground["colour"])
        if len(names) == 1:
            return f"{_article(names[0])} {where}"
        one, two = self.creatures[0], self.creatures[1]
        dx, dy = two["x"] - one["x"], two["y"] - one["y"]
        if abs(dx) >= abs(dy):
            relation = "left of" if dx > 0 else "right of"
        else:
            relation = "above" if dy > 0 else "below"
        first = f"{_article(names[0])} {relation} {_article(names[1])}"
        rest = "".join(f" and {_article(name)}" for name in names[2:])
        number = ("two", "three", "four")[len(names) - 2]
        return f"{number} creatures: {first}{rest}, {where}"


def _where(dark: np.ndarray, colour: np.ndarray) -> str:
    return f"on a {'dark' if dark else 'light'} {_NAMES[int(colour)]} ground"


def _name(colour: np.ndarray, kind: np.ndarray) -> str:
    return f"{_NAMES[int(colour)]} {KINDS[int(kind)]}"


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


# --- Drawing scenes from numbers ----------------------------------------------------------------


def _uniform(seed: int, split: str, index: np.ndarray, stream: int, width: int) -> np.ndarray:
    """Numbers in [0, 1) that depend on nothing but the arguments: float64 [N, width].

    A hash, not a generator with a state, so that thousands of scenes can be drawn at once and each
    still depends on its own index only.
    """
    golden = np.uint64(GOLDEN)
    key = np.zeros(1, np.uint64)
    for word in (seed, list(SPLITS).index(split), stream):
        key = mix((key ^ np.uint64(word % 2**64)) + golden)
    rows = mix((key ^ index.astype(np.uint64)) + golden)
    cells = rows[:, None] + golden * np.arange(1, width + 1, dtype=np.uint64)
    return (mix(cells) >> np.uint64(11)) * 2.0**-53


def _labels(seed: int, split: str, index: np.ndarray) -> np.ndarray:
    """Kinds, int64 [N]: every run of len(KINDS) indices holds each kind once, shuffled."""
    order = _uniform(seed, split, index // len(KINDS), 1, len(KINDS)).argsort(axis=1)
    return order[np.arange(len(index)), index % len(KINDS)].astype(np.int64)


def _ground_tones(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour and darkness of N grounds from uniform numbers [N, 2 or more]."""
    return (u[:, 0] * _GROUNDS).astype(np.int64), u[:, 1] < 0.5


def _colours(u: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Colours of N creatures from uniform numbers [N, 1 or more] and whether the grounds are
    dark."""
    pick = (u[:, 0] * len(_ON_DARK)).astype(int)
    return np.where(dark, _ON_DARK[pick], _ON_LIGHT[pick])


def _draw_grounds(u: np.ndarray) -> np.ndarray:
    """Grounds of N scenes from uniform numbers [N, 48]."""
    n = len(u)
    out = np.zeros(n, GROUND)
    out["colour"], out["dark"] = _ground_tones(u)
    dark = out["dark"][:, None]
    hue = _RGB[out["colour"]]
    out["base"] = np.where(dark, 0.30 * hue + 0.02, 0.36 * hue + 0.62) + 0.05 * (u[:, 2:5] - 0.5)
    out["far"] = out["base"] + 0.1 * (u[:, 5:8] - 0.5) + 0.2 * (u[:, 8:9] - 0.5)
    out["angle"] = 2 * np.pi * u[:, 9]
    blob = u[:, 10 : 10 + 3 * BLOBS].reshape(n, BLOBS, 3)
    out["blobs"] = blob * (1.2, 1.2, 0.35) + (-0.1, -0.1, 0.15)
    tint = u[:, 22 : 22 + 4 * BLOBS].reshape(n, BLOBS, 4)
    out["tints"] = 0.06 * (tint[..., :3] - 0.5) + 0.16 * (tint[..., 3:] - 0.5)
    return out


def _draw_creatures(
    u: np.ndarray, kind: np.ndarray, dark: np.ndarray, cell: tuple[float, float, float, float]
) -> np.ndarray:
    """One creature for each of N scenes.

    Args:
        u: float64 [N, 20 + POSE] in [0, 1).
        kind: int64 [N].
        dark: bool [N], whether the ground is dark.
        cell: x0, y0, x1, y1 of the rectangle it must lie in, in image sides.
    """
    out = np.zeros(len(u), CREATURE)
    out["kind"] = kind
    out["colour"] = _colours(u, dark)
    main = np.clip(_RGB[out["colour"]] + 0.08 * (u[:, 1:4] - 0.5), 0, 1)
    accent = _RGB[((out["colour"] + 1 + u[:, 4] * (len(_RGB) - 1)) % len(_RGB)).astype(int)]
    bright = main.mean(axis=1, keepdims=True) > 0.3
    tones = {
        "main": main,
        "far": 0.72 * main,
        "pale": 0.7 * main + 0.28,
        "accent": 0.45 * main + 0.55 * accent,
        "eye": np.where(bright, 0.07, 0.95) * np.ones(3),
    }
    out["tones"] = np.stack([tones[t] for t in TONES], axis=1)
    out["angle"] = (2 * u[:, 5] - 1) * MAX_TILT
    out["flip"] = u[:, 6] < 0.5
    out["skin"] = u[:, 7:12]
    out["pose"] = u[:, 20:]
    out["size"] = 1.0

    # Its extent at size one, turned and mirrored, says how large it may become and where it fits.
    capsules, parts, _ = placed(out)[:3]
    r = np.maximum(capsules[..., 4], capsules[..., 5])
    r = np.where(parts > 0, r, -np.inf)
    low = np.stack([(np.minimum(capsules[..., a], capsules[..., a + 2]) - r) for a in (0, 1)], -1)
    high = np.stack([(np.maximum(capsules[..., a], capsules[..., a + 2]) + r) for a in (0, 1)], -1)
    low, high = low.min(axis=1), high.max(axis=1)  # [N, 2]
    room = np.array([cell[2] - cell[0], cell[3] - cell[1]])
    share = MIN_SHARE + (MAX_SHARE - MIN_SHARE) * u[:, 12]
    out["size"] = share * (room / (high - low)).min(axis=1)
    low, high = low * out["size"][:, None], high * out["size"][:, None]
    place = cell[:2] - low + u[:, 13:15] * (room - (high - low))
    out["x"], out["y"] = place[:, 0], place[:, 1]
    return out


def _draw(
    seed: int, split: str, index: np.ndarray, number: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Creatures [N, number] and grounds [N] of the scenes with these indices."""
    grounds = _draw_grounds(_uniform(seed, split, index, 0, 48))
    if number == 1:
        cells = [(0.02, 0.02, 0.98, 0.98)]
    else:
        cells = [(x, y, x + 0.46, y + 0.46) for y in (0.02, 0.52) for x in (0.02, 0.52)]
    order = _uniform(seed, split, index, 2, len(cells)).argsort(axis=1)
    creatures = np.zeros((len(index), number), CREATURE)
    for m in range(number):
        u = _uniform(seed, split, index, 3 + m, 20 + POSE)
        kind = _labels(seed, split, index) if m == 0 else (u[:, 19] * len(KINDS)).astype(np.int64)
        for c, cell in enumerate(cells):
            rows = np.flatnonzero(order[:, m] == c)
            creatures[rows, m] = _draw_creatures(u[rows], kind[rows], grounds["dark"][rows], cell)
    return creatures, grounds


def draw_scene(index: int, *, split: str = "train", seed: int = 0, creatures: int = 1) -> Scene:
    """The scene with this index; with one creature, exactly the one that `Creatures` shows.

    Args:
        index: 0 or more.
        split: "train" or "test".
        seed: of the whole world.
        creatures: how many of them, 1 to 4, each in its own quarter if there are several.
    """
    _check_split(split)
    if not 1 <= creatures <= 4:
        raise UsageError(f"A scene holds 1 to 4 creatures, not {creatures}.")
    drawn, grounds = _draw(seed, split, np.array([index]), creatures)
    return Scene(drawn[0], grounds[0])


# --- Rendering ----------------------------------------------------------------------------------


def render(scene: Scene, size: int = 32) -> Sample:
    """The scene's image and ground truth, size x size pixels.

    The label is the kind of the creatures, or None if they differ. Keypoints come creature by
    creature, len(KEYPOINTS) each; x runs from 0 to `size`, so the first pixel's middle is at 0.5.
    A keypoint is visible (1) if the kind has it; absent ones are (0, 0, 0).
    """
    _check_size(size)
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


# --- The source ---------------------------------------------------------------------------------


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise unknown("split of creatures", split, SPLITS)


def _check_size(size: int) -> None:
    if size < MIN_SIZE:
        raise UsageError(
            f"Creatures cannot be told apart at {size} pixels. Use a size of {MIN_SIZE} or more; "
            "32 is the usual one."
        )


class _ImageCache:
    """Images that have been drawn."""

    def __init__(self, count: int, size: int):
        self.images = np.empty((count, size, size, 3), np.uint8)
        self.ready = np.zeros(count, bool)  # which of them are there


_CACHES: dict[tuple[object, ...], _ImageCache] = {}  # the one used last is the last


def _shared_cache(world: tuple[object, ...], count: int, size: int) -> _ImageCache:
    """The images of a world that this process has drawn: a set that is opened again, as for
    judging what was trained on it, is not drawn again."""
    found = _CACHES.pop(world, None)
    if found is None or len(found.ready) < count:
        new = _ImageCache(count, size)
        if found is not None:  # a smaller set is the beginning of a larger one
            new.images[: len(found.ready)] = found.images
            new.ready[: len(found.ready)] = found.ready
        found = new
    if found.images.nbytes <= SHARED_BYTES:
        _CACHES[world] = found
    while sum(w.images.nbytes for w in _CACHES.values()) > SHARED_BYTES:
        del _CACHES[next(iter(_CACHES))]
    return found


class Creatures(Source):
    """Images of one creature each, rendered when first asked for.

    Args:
        split: "train" or "test"; the two never share a scene.
        size: height and width in pixels, 16 or more.
        count: number of images; 10,000 (train) or 2,000 (test) if not given. A smaller set is
            the beginning of a larger one.
        seed: of the whole world.
    """

    classes = KINDS
    in_memory = True
    labels: np.ndarray

    def __init__(
        self, split: str = "train", size: int = 32, count: int | None = None, seed: int = 0
    ):
        _check_split(split)
        _check_size(size)
        self.split, self.size, self.seed = split, size, seed
        self.name = f"creatures:{split}"
        self.labels = _labels(seed, split, np.arange(SPLITS[split] if count is None else count))
        self._cache: _ImageCache | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, object]:
        # A copy in another process renders its own images: quicker than sending them.
        return {**self.__dict__, "_cache": None}

    def path(self, index: int, /) -> str:
        """A name for the image, like a file's path."""
        return f"{self.name}/{index:05d}"

    def scene(self, index: int) -> Scene:
        """The description of an image, to render at another size or to change."""
        self._check_indices(np.array([index]))
        return draw_scene(int(index), split=self.split, seed=self.seed)

    def read(self, index: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """One image with its whole ground truth and caption."""
        return render(self.scene(index), self.size)

    def read_text(self, index: int, /) -> str:
        """The caption of an image."""
        return self.read_texts(np.array([index]))[0]

    def read_texts(self, indices: np.ndarray, /) -> tuple[str, ...]:
        """Captions of the images at `indices`, int [N]; nothing is drawn for them."""
        which = np.asarray(indices, np.int64)
        self._check_indices(which)
        colours, dark = _ground_tones(_uniform(self.seed, self.split, which, 0, 2))
        own = _colours(_uniform(self.seed, self.split, which, 3, 1), dark)
        return tuple(
            f"{_article(_name(colour, kind))} {_where(shade, ground)}"
            for colour, kind, shade, ground in zip(
                own, self.labels[which], dark, colours, strict=True
            )
        )

    def images(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Images alone, the fast path: uint8 [N, H, W, 3]; all of them if `indices` is None."""
        which = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        self._check_indices(which)
        if len(self) * self.size**2 * 3 > CACHE_BYTES:
            return self._render(which)
        if self._cache is None:
            world = (type(self), self.split, self.size, self.seed)
            self._cache = _shared_cache(world, len(self), self.size)
        kept = self._cache
        missing = np.unique(which[~kept.ready[which]])
        kept.images[missing] = self._render(missing)
        kept.ready[missing] = True
        return kept.images[which]

    def _render(self, which: np.ndarray) -> np.ndarray:
        out = np.empty((len(which), self.size, self.size, 3), np.uint8)
        for start in range(0, len(which), DRAWN):
            scenes = _draw(self.seed, self.split, which[start : start + DRAWN])
            out[start : start + DRAWN] = raster(*scenes, self.size)[0]
        return out

    def _check_indices(self, which: np.ndarray) -> None:
        if len(which) and not 0 <= which.min() <= which.max() < len(self):
            raise IndexError(f"{self.name} has images 0 to {len(self) - 1}.")

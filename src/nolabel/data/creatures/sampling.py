"""Random scenes: the description of an image of creatures, drawn as a function of its index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nolabel.data.creatures.plans import KINDS, POSE, TONES
from nolabel.data.creatures.raster import BLOBS, CREATURE, GROUND, place
from nolabel.errors import UsageError, unknown
from nolabel.nn.splitmix64 import GOLDEN, mix

SPLITS: dict[str, int] = {"train": 10_000, "test": 2_000}  # name -> number of images
CHUNK = 512  # scenes drawn at once; the time is then spent in NumPy, not in Python

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
# Colours of creatures on dark and on light grounds, chosen for contrast.
_ON_DARK = np.array([0, 1, 2, 3, 6, 8])  # red, orange, yellow, green, pink, white
_ON_LIGHT = np.array([0, 3, 4, 5, 7, 9])  # red, green, blue, purple, brown, black
MAX_TILT = 0.8  # largest rotation, in radians
MIN_SHARE, MAX_SHARE = 0.46, 0.82  # extent of a creature as a share of its cell's tighter side
_GROUNDS = 7  # the first seven colours are also ground colours, each light and dark


@dataclass(frozen=True)
class Scene:
    """The description of one image, in units of its side. To edit it, copy the arrays."""

    creatures: np.ndarray  # [M] of dtype CREATURE; later ones cover earlier ones
    ground: np.ndarray  # [] of dtype GROUND

    @property
    def caption(self) -> str:
        """Number, colours, kinds, relative position of the first two creatures, and the ground."""
        names = [_creature_phrase(c["colour"], c["kind"]) for c in self.creatures]
        ground = _ground_phrase(self.ground["dark"], self.ground["colour"])
        if len(names) == 1:
            return f"{_with_article(names[0])} {ground}"
        one, two = self.creatures[0], self.creatures[1]
        dx, dy = two["x"] - one["x"], two["y"] - one["y"]
        if abs(dx) >= abs(dy):
            relation = "left of" if dx > 0 else "right of"
        else:
            relation = "above" if dy > 0 else "below"
        first = f"{_with_article(names[0])} {relation} {_with_article(names[1])}"
        rest = "".join(f" and {_with_article(name)}" for name in names[2:])
        number = ("two", "three", "four")[len(names) - 2]
        return f"{number} creatures: {first}{rest}, {ground}"


def _ground_phrase(dark: np.ndarray, colour: np.ndarray) -> str:
    return f"on a {'dark' if dark else 'light'} {_NAMES[int(colour)]} ground"


def _creature_phrase(colour: np.ndarray, kind: np.ndarray) -> str:
    return f"{_NAMES[int(colour)]} {KINDS[int(kind)]}"


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def keyed_uniform(seed: int, split: str, index: np.ndarray, stream: int, width: int) -> np.ndarray:
    """Uniform random numbers as a stateless function of the arguments.

    A counter-based hash (SplitMix64) instead of a stateful generator, so that many scenes can be
    drawn at once and each depends on its own index only.

    Args:
        seed: seed of all scenes.
        split: "train" or "test".
        index: int64 [N], indices of scenes.
        stream: number of an independent sequence.
        width: numbers per scene.

    Returns:
        float64 [N, width] in [0, 1).
    """
    golden = np.uint64(GOLDEN)
    key = np.zeros(1, np.uint64)
    for word in (seed, list(SPLITS).index(split), stream):
        key = mix((key ^ np.uint64(word % 2**64)) + golden)
    rows = mix((key ^ index.astype(np.uint64)) + golden)
    cells = rows[:, None] + golden * np.arange(1, width + 1, dtype=np.uint64)
    return (mix(cells) >> np.uint64(11)) * 2.0**-53


def draw_kinds(seed: int, split: str, index: np.ndarray) -> np.ndarray:
    """Kinds, int64 [N]: each kind once in every len(KINDS) consecutive scenes, shuffled."""
    order = keyed_uniform(seed, split, index // len(KINDS), 1, len(KINDS)).argsort(axis=1)
    return order[np.arange(len(index)), index % len(KINDS)].astype(np.int64)


def _ground_tones(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours int64 [N] and darkness bool [N] of grounds, from uniform numbers [N, 2 or more]."""
    return (u[:, 0] * _GROUNDS).astype(np.int64), u[:, 1] < 0.5


def _creature_colours(u: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Colours int64 [N] of creatures, from uniform numbers [N, 1 or more] and `dark`, bool [N]."""
    index = (u[:, 0] * len(_ON_DARK)).astype(int)
    return np.where(dark, _ON_DARK[index], _ON_LIGHT[index])


def _draw_grounds(u: np.ndarray) -> np.ndarray:
    """Grounds of N scenes, [N] of dtype GROUND, from uniform numbers [N, 48]."""
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
    """Draws one creature for each of N scenes.

    Args:
        u: float64 [N, 20 + POSE] in [0, 1).
        kind: int64 [N].
        dark: bool [N], whether the ground is dark.
        cell: x0, y0, x1, y1 of the rectangle that contains it, in image sides.

    Returns:
        [N] of dtype CREATURE.
    """
    out = np.zeros(len(u), CREATURE)
    out["kind"] = kind
    out["colour"] = _creature_colours(u, dark)
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

    # The bounding box at size 1, rotated and mirrored, limits the size and the position.
    capsules, parts, _ = place(out)[:3]
    r = np.maximum(capsules[..., 4], capsules[..., 5])
    r = np.where(parts > 0, r, -np.inf)
    low = np.stack([(np.minimum(capsules[..., a], capsules[..., a + 2]) - r) for a in (0, 1)], -1)
    high = np.stack([(np.maximum(capsules[..., a], capsules[..., a + 2]) + r) for a in (0, 1)], -1)
    low, high = low.min(axis=1), high.max(axis=1)  # [N, 2]
    cell_size = np.array([cell[2] - cell[0], cell[3] - cell[1]])
    share = MIN_SHARE + (MAX_SHARE - MIN_SHARE) * u[:, 12]
    out["size"] = share * (cell_size / (high - low)).min(axis=1)
    low, high = low * out["size"][:, None], high * out["size"][:, None]
    origin = cell[:2] - low + u[:, 13:15] * (cell_size - (high - low))
    out["x"], out["y"] = origin[:, 0], origin[:, 1]
    return out


def draw_arrays(
    seed: int, split: str, index: np.ndarray, number: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draws many scenes at once.

    Args:
        seed: seed of all scenes.
        split: "train" or "test".
        index: int64 [N], indices of scenes.
        number: creatures per scene M, 1 to 4.

    Returns:
        Creatures [N, M] of dtype CREATURE and grounds [N] of dtype GROUND.
    """
    grounds = _draw_grounds(keyed_uniform(seed, split, index, 0, 48))
    if number == 1:
        cells = [(0.02, 0.02, 0.98, 0.98)]
    else:
        cells = [(x, y, x + 0.46, y + 0.46) for y in (0.02, 0.52) for x in (0.02, 0.52)]
    order = keyed_uniform(seed, split, index, 2, len(cells)).argsort(axis=1)
    creatures = np.zeros((len(index), number), CREATURE)
    for m in range(number):
        u = keyed_uniform(seed, split, index, 3 + m, 20 + POSE)
        kind = (
            draw_kinds(seed, split, index) if m == 0 else (u[:, 19] * len(KINDS)).astype(np.int64)
        )
        for c, cell in enumerate(cells):
            rows = np.flatnonzero(order[:, m] == c)
            creatures[rows, m] = _draw_creatures(u[rows], kind[rows], grounds["dark"][rows], cell)
    return creatures, grounds


def single_captions(seed: int, split: str, index: np.ndarray) -> tuple[str, ...]:
    """Captions of the scenes of one creature at `index`, int64 [N], without drawing them."""
    grounds, dark = _ground_tones(keyed_uniform(seed, split, index, 0, 2))
    colours = _creature_colours(keyed_uniform(seed, split, index, 3, 1), dark)
    rows = zip(colours, draw_kinds(seed, split, index), dark, grounds, strict=True)
    return tuple(
        f"{_with_article(_creature_phrase(colour, kind))} {_ground_phrase(is_dark, ground)}"
        for colour, kind, is_dark, ground in rows
    )


def draw_scene(index: int, *, split: str = "train", seed: int = 0, creatures: int = 1) -> Scene:
    """Draws the scene with this index; with one creature, it is that of `Creatures`.

    Args:
        index: index of the scene, 0 or more.
        split: "train" or "test".
        seed: seed of all scenes.
        creatures: number of creatures, 1 to 4; several are in different quarters of the image.

    Raises:
        UsageError: an unknown split, or another number of creatures.
    """
    check_split(split)
    if not 1 <= creatures <= 4:
        raise UsageError(f"A scene holds 1 to 4 creatures, not {creatures}.")
    creature_array, grounds = draw_arrays(seed, split, np.array([index]), creatures)
    return Scene(creature_array[0], grounds[0])


def check_split(split: str) -> None:
    """Raises UsageError unless `split` is in SPLITS."""
    if split not in SPLITS:
        raise unknown("split of creatures", split, SPLITS)

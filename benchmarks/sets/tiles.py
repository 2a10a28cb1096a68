"""`tiles`: small pieces of large maps, in five classes by the land use that they show most of.

A tile with a motorway on a fifth of its area is of the class `road`. Tiles are cut at random, so
that many overlap and are nearly equal; those of test come from a part of each map that no tile of
train touches. There is no up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from .fields import to_bytes
from .files import File, generator, png
from .maps import ROAD, Map, draw_map

CLASSES = ("field", "forest", "town", "water", "road")
COUNTS = {"train": 5000, "test": 1000}
SHARES = (0.28, 0.22, 0.22, 0.14, 0.14)  # of the classes, in train and test
SIDE = 64  # pixels
MAPS, MAP_SIDE = 4, 1408
_TEST_FROM = 0.78  # of each map's width: tiles of test lie to the right
_ROAD_SHARE = 0.2
_TRIES = 40  # random places a wanted tile


def files(split: str, count: int, seed: int) -> Iterator[File]:
    yield from cut(_maps(seed), split, count, seed)


@functools.lru_cache(1)
def _maps(seed: int) -> list[Map]:
    return [draw_map(generator("maps", seed, "", i), MAP_SIDE) for i in range(MAPS)]


def cut(maps: list[Map], split: str, count: int, seed: int) -> Iterator[File]:
    """Cuts `count` tiles of the classes in their shares."""
    rng = generator("tiles", seed, split)
    side = len(maps[0].use)
    border = round(_TEST_FROM * side)
    left, right = (0, border) if split == "train" else (border, side)
    places = np.stack(
        [
            rng.integers(len(maps), size=_TRIES * count),
            rng.integers(side - SIDE + 1, size=_TRIES * count),
            rng.integers(left, right - SIDE + 1, size=_TRIES * count),
        ],
        -1,
    )
    labels = _labels(maps, places)
    wanted = np.diff(np.rint(count * np.cumsum([0.0, *SHARES])).astype(int))
    chosen = []
    for label, number in enumerate(wanted):
        found = np.flatnonzero(labels == label)[:number]
        if len(found) < number:
            raise ValueError(
                f"The maps of seed {seed} have {len(found)} tiles of {CLASSES[label]!r} for "
                f"{split}, not {number}. Take another seed."
            )
        chosen.append(found)
    for i in np.sort(np.concatenate(chosen)):
        which, top, at = places[i]
        tile = maps[which].picture[top : top + SIDE, at : at + SIDE]
        yield File(CLASSES[labels[i]], ".png", png(to_bytes(tile)))


def _labels(maps: list[Map], places: np.ndarray) -> np.ndarray:
    """The class of each place, int64 [N].

    Args:
        maps: the maps.
        places: int [N, 3]: which map, top, left.
    """
    which, top, left = places.T
    shares = np.zeros((len(places), len(CLASSES)))
    for number, made in enumerate(maps):
        here = which == number
        for label in range(len(CLASSES)):
            sums = np.pad(np.cumsum(np.cumsum(made.use == label, 0), 1), ((1, 0), (1, 0)))
            y, x = top[here], left[here]
            area = sums[y + SIDE, x + SIDE] - sums[y, x + SIDE] - sums[y + SIDE, x] + sums[y, x]
            shares[here, label] = area / SIDE**2
    with_road = shares[:, ROAD] >= _ROAD_SHARE
    return np.where(with_road, ROAD, shares[:, :ROAD].argmax(1))

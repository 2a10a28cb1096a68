"""Random fields of which the sets are drawn: smooth noise, polygons of points, lighting."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

Field = np.ndarray  # float32 [H, W]


def resize(field: Field, height: int, width: int, box: tuple[float, ...] | None = None) -> Field:
    """Bicubic resampling of a part of a field (left, top, right, bottom)."""
    image = Image.fromarray(np.ascontiguousarray(field, np.float32), "F")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, scale: float, scale_x: float = 0.0
) -> Field:
    """Noise of mean 0 and variance near 1 that changes over `scale` pixels.

    Args:
        rng: random numbers.
        height: in pixels.
        width: in pixels.
        scale: over which it changes, in pixels; vertically, if `scale_x` is given.
        scale_x: the same along x, for stretched noise.
    """
    scale_x = scale_x or scale
    rows, columns = height / scale, width / scale_x
    coarse = rng.standard_normal((int(rows) + 4, int(columns) + 4), np.float32)
    left, top = 1 + rng.random(), 1 + rng.random()
    return resize(coarse, height, width, (left, top, left + columns, top + rows)) * 1.3


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, scale: float, octaves: int = 4
) -> Field:
    """Octaves of smooth noise, each of half the scale and half the amplitude."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        if scale / 2**octave >= 1:
            total += smooth_noise(rng, height, width, scale / 2**octave) / 2**octave
    return total / 1.15


def grid(height: int, width: int) -> tuple[Field, Field]:
    """Row and column of every pixel, float32 [H, W] each."""
    y, x = np.mgrid[:height, :width]
    return y.astype(np.float32), x.astype(np.float32)


def scatter(
    rng: np.random.Generator, height: float, width: float, spacing: float, margin: float = 0.0
) -> np.ndarray:
    """Random points that keep their distance: float [N, 2] of rows and columns.

    A point closer than 0.7 `spacing` to an earlier one is left out.
    """
    sides = height + 2 * margin, width + 2 * margin
    count = max(1, int(1.6 * sides[0] * sides[1] / spacing**2))
    points = rng.random((count, 2)) * sides - margin
    pairs = cKDTree(points).query_pairs(0.7 * spacing, output_type="ndarray")
    kept = np.ones(count, bool)
    for a, b in pairs[np.argsort(pairs[:, 1], kind="stable")]:
        if kept[a]:
            kept[b] = False
    return points[kept]


def nearest_point(points: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Index of the point nearest to each position, int64 of the shape of `y`."""
    return cKDTree(points).query(np.stack([y, x], -1))[1]


def borders(labels: np.ndarray) -> np.ndarray:
    """Where the pixel to the right or below belongs to another region: bool [H, W]."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def lighting(rng: np.random.Generator, height: int, width: int, strength: float) -> Field:
    """Uneven light with mean about 1: a slope in a random direction and darker corners."""
    y, x = grid(height, width)
    v, u = 2 * y / height - 1, 2 * x / width - 1
    angle, slope = rng.uniform(0, 2 * np.pi), strength * rng.random()
    fall = 0.5 * strength * rng.random()
    centre_v, centre_u = rng.uniform(-0.4, 0.4, 2)
    field = 1 + slope * (u * np.cos(angle) + v * np.sin(angle))
    field -= fall * ((u - centre_u) ** 2 + (v - centre_v) ** 2 - 0.7)
    return np.maximum(field, 0.1).astype(np.float32)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Rounds values of 0 to 255 to uint8; what lies outside is clipped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)

"""`tissue`: sections of stained tissue, in four classes by their texture.

    cells    nuclei close together
    glands   rings of nuclei around an opening, in stroma
    stroma   wavy fibres with sparse, long nuclei
    fat      large empty cells with thin walls

The class is what most of the picture shows; many pictures have a part of another class. There is
no up. Colour and strength of both stains, light and magnification are drawn independently of the
class, as between laboratories.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from .fields import Field, fractal_noise, grid, lighting, scatter, smooth_noise, to_bytes
from .files import File, generator, jpeg

CLASSES = ("cells", "glands", "stroma", "fat")
COUNTS = {"train": 2400, "test": 600}
SIDE = 150  # pixels
# Optical densities (red, green, blue) of haematoxylin, which stains nuclei, and of eosin:
# Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution, 2001.
_NUCLEAR = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.07, 0.99, 0.11])


class Layers(NamedTuple):
    """How much of each stain every pixel takes, and where it is empty; each about 0 to 1."""

    nuclei: Field
    eosin: Field
    empty: Field


def files(split: str, count: int, seed: int) -> Iterator[File]:
    for i in range(count):
        rng = generator("tissue", seed, split, i)
        label = i % len(CLASSES)
        pixels = picture(rng, label)
        yield File(CLASSES[label], ".jpg", jpeg(pixels, int(rng.integers(80, 93))))


def picture(rng: np.random.Generator, label: int) -> np.ndarray:
    """One section, uint8 [150, 150, 3]."""
    scale = rng.uniform(0.75, 1.3)
    layers = _KINDS[label](rng, scale)
    if rng.random() < 0.5:  # a part is of another class
        other = _KINDS[(label + int(rng.integers(1, 4))) % 4](rng, scale)
        field = smooth_noise(rng, SIDE, SIDE, 75)
        share = rng.uniform(0.05, 0.35)
        mask = np.clip((field - np.quantile(field, 1 - share)) * 12 + 0.5, 0, 1)
        layers = Layers(*(a * (1 - mask) + b * mask for a, b in zip(layers, other, strict=True)))
    return _stain(rng, layers)


def _stain(rng: np.random.Generator, layers: Layers) -> np.ndarray:
    """Light through the section: Beer and Lambert's law."""
    nuclear, eosin = (
        v / np.linalg.norm(v)
        for v in (
            np.abs(_NUCLEAR + rng.normal(0, 0.09, 3)),
            np.abs(_EOSIN + rng.normal(0, 0.09, 3)),
        )
    )
    thick = 1 + 0.12 * fractal_noise(rng, SIDE, SIDE, 60, 4)
    density = rng.uniform(1.0, 2.4) * layers.nuclei[..., None] * nuclear
    density = density + rng.uniform(0.5, 1.4) * layers.eosin[..., None] * eosin
    density = density * thick[..., None] * (1 - layers.empty)[..., None]
    light = rng.uniform(205, 250) * (1 - np.abs(rng.normal(0, 0.03, 3)))
    image = light * lighting(rng, SIDE, SIDE, 0.1)[..., None] * np.exp(-density)
    image = gaussian_filter(image, (*[rng.uniform(0.3, 0.9)] * 2, 0))
    return to_bytes(image + rng.normal(0, 2.0, image.shape))


def _draw_nuclei(
    rng: np.random.Generator, centres: np.ndarray, radius: float, aspect: float, angles: np.ndarray
) -> Field:
    """Ellipses with a dark rim and grains inside.

    Args:
        rng: random numbers.
        centres: float [N, 2], rows and columns.
        radius: the usual half of the long axis, in pixels.
        aspect: the usual short axis as a part of the long one.
        angles: float [N], of the long axes.
    """
    field = np.zeros((SIDE, SIDE), np.float32)
    radii = radius * np.exp(rng.normal(0, 0.18, len(centres)))
    aspects = np.clip(aspect + rng.normal(0, 0.08, len(centres)), 0.2, 1)
    depth = rng.uniform(0.6, 1.0, len(centres))
    for (row, column), a, ratio, angle, dark in zip(
        centres, radii, aspects, angles, depth, strict=True
    ):
        reach = int(a + 2)
        top, left = max(0, int(row) - reach), max(0, int(column) - reach)
        bottom, right = int(row) + reach + 2, int(column) + reach + 2
        part = field[top:bottom, left:right]
        if bottom <= 0 or right <= 0 or not part.size:
            continue
        y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        v, u = y - row, x - column
        along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        distance = np.sqrt((along / a) ** 2 + (across / (a * ratio)) ** 2)
        inside = np.clip((1 - distance) * a * ratio + 0.5, 0, 1)
        np.maximum(part, inside * dark * (0.65 + 0.35 * np.minimum(distance, 1) ** 3), out=part)
    grains = 1 + 0.22 * smooth_noise(rng, SIDE, SIDE, 1.6)
    return np.clip(field * grains, 0, 1.2)


def _cells(rng: np.random.Generator, scale: float) -> Layers:
    spacing = scale * rng.uniform(8.5, 13)
    centres = scatter(rng, SIDE, SIDE, spacing, 8)
    angles = rng.uniform(0, np.pi, len(centres))
    radius = spacing * rng.uniform(0.34, 0.46)
    nuclei = _draw_nuclei(rng, centres, radius, rng.uniform(0.7, 0.95), angles)
    eosin = 0.45 + 0.15 * fractal_noise(rng, SIDE, SIDE, 20, 4)
    cracks = np.clip(fractal_noise(rng, SIDE, SIDE, 30, 4) - rng.uniform(1.1, 2.2), 0, 0.3) / 0.3
    return Layers(nuclei, np.clip(eosin, 0.05, 1), cracks)


def _fibres(rng: np.random.Generator, scale: float) -> tuple[Field, float]:
    """Wavy bundles, about 0 to 1, and the direction in which they run."""
    side = int(1.5 * SIDE)
    y, x = grid(side, side)
    wave = rng.uniform(4, 9) * scale * smooth_noise(rng, side, side, 40 * scale)
    wave += rng.uniform(1, 3) * np.sin(2 * np.pi * x / (scale * rng.uniform(22, 40)))
    thin = smooth_noise(rng, side + 80, side, 2.6 * scale, 60 * scale)
    broad = smooth_noise(rng, side + 80, side, 8 * scale, 90 * scale)
    bundle = map_coordinates(0.7 * thin + 0.7 * broad, (y + wave + 40, x), order=1, mode="nearest")
    angle = rng.uniform(0, np.pi)
    turned = Image.fromarray(bundle.astype(np.float32), "F").rotate(
        -np.degrees(angle), Image.Resampling.BILINEAR
    )
    cut = (side - SIDE) // 2
    return np.asarray(turned)[cut : cut + SIDE, cut : cut + SIDE], angle


def _stroma(rng: np.random.Generator, scale: float) -> Layers:
    bundle, angle = _fibres(rng, scale)
    centres = scatter(rng, SIDE, SIDE, scale * rng.uniform(16, 28), 8)
    angles = angle + rng.normal(0, 0.3, len(centres))
    radius = scale * rng.uniform(4.5, 7)
    nuclei = _draw_nuclei(rng, centres, radius, rng.uniform(0.25, 0.4), angles)
    gaps = np.clip(-bundle - rng.uniform(0.5, 1.4), 0, 0.4) / 0.4
    return Layers(nuclei, np.clip(0.6 + 0.28 * bundle, 0.1, 1.3), gaps * 0.9)


def _outline(waves: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Distance of an irregular round outline from its centre, at each angle.

    Args:
        waves: float [4, 2], amplitude and phase of two to five waves around it.
        angle: of any shape.
    """
    return 1 + sum(a * np.cos(k * angle + phase) for k, (a, phase) in enumerate(waves, 2))


def _glands(rng: np.random.Generator, scale: float) -> Layers:
    nuclei, eosin, empty = (layer.copy() for layer in _stroma(rng, scale))
    size = scale * rng.uniform(20, 36)
    y, x = grid(SIDE, SIDE)
    for row, column in scatter(rng, SIDE, SIDE, 2.5 * size, 0.6 * size):
        radius = size * rng.uniform(0.75, 1.15)
        v, u = y - row, x - column
        angle, distance = np.arctan2(v, u), np.hypot(v, u)
        amplitudes = rng.normal(0, 0.16, 4) / np.arange(2, 6)
        waves = np.stack([amplitudes, rng.uniform(0, 2 * np.pi, 4)], -1)
        outline = radius * _outline(waves, angle)
        opening = rng.uniform(0.15, 0.5)
        inside = np.clip(outline - distance, 0, 1)
        hole = np.clip((opening * outline - distance) / 1.5, 0, 1)
        count = int(2 * np.pi * radius / (scale * rng.uniform(5.0, 7.0)))
        turns = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.normal(0, 0.05, count)
        there = 0.82 * radius * _outline(waves, turns) * (1 - np.abs(rng.normal(0, 0.06, count)))
        centres = np.stack([row + there * np.sin(turns), column + there * np.cos(turns)], -1)
        ring = _draw_nuclei(rng, centres, scale * rng.uniform(3.6, 4.8), 0.6, turns)
        nuclei = nuclei * (1 - inside) + ring * inside
        eosin = eosin * (1 - inside) + inside * (0.35 + 0.1 * smooth_noise(rng, SIDE, SIDE, 5))
        empty = empty * (1 - inside) + hole * rng.uniform(0.75, 1.0)
    return Layers(nuclei, np.clip(eosin, 0.05, 1.3), np.clip(empty, 0, 1))


def _fat(rng: np.random.Generator, scale: float) -> Layers:
    spacing = scale * rng.uniform(26, 44)
    points = scatter(rng, SIDE, SIDE, spacing, spacing)
    y, x = grid(SIDE, SIDE)
    y = y + 0.06 * spacing * smooth_noise(rng, SIDE, SIDE, 0.8 * spacing)
    x = x + 0.06 * spacing * smooth_noise(rng, SIDE, SIDE, 0.8 * spacing)
    distance = cKDTree(points).query(np.stack([y, x], -1), k=3)[0]
    # The third point rounds the corners, where walls meet and nuclei lie.
    wall = 0.5 * (distance[..., 1] - distance[..., 0])
    corner = 0.5 * (distance[..., 2] - distance[..., 0])
    inner = wall * corner / np.maximum(wall + 0.35 * corner, 1e-3)
    empty = np.clip(inner - scale * rng.uniform(0.8, 2.2), 0, 1).astype(np.float32)
    places = np.argwhere(corner < scale * 2.0)
    count = min(len(places), int(rng.integers(4, 14)))
    centres = places[rng.choice(len(places), count, replace=False)] if count else np.zeros((0, 2))
    turns = rng.uniform(0, np.pi, count)
    nuclei = _draw_nuclei(rng, centres.astype(float), scale * 4.0, 0.45, turns)
    eosin = 0.55 + 0.15 * smooth_noise(rng, SIDE, SIDE, 6)
    empty *= 1 - np.clip(nuclei * 2, 0, 1)
    return Layers(nuclei, np.clip(eosin, 0.1, 1), empty * rng.uniform(0.85, 1.0))


_KINDS = (_cells, _glands, _stroma, _fat)

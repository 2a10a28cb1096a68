"""`cells`: grey pictures of solar cells under current, intact or defective.

Bus bars lie horizontally, fingers vertically; a cell looks the same upside down and mirrored.
Silicon is of one crystal or of many grains. A defective cell has thin cracks, dark areas or dark
stripes along the fingers. Intact ones have dark grains, clouds and specks too, and the mean
brightness of every picture is drawn independently of its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from .fields import (
    Field,
    borders,
    fractal_noise,
    grid,
    lighting,
    nearest_point,
    scatter,
    smooth_noise,
    to_bytes,
)
from .files import File, generator, png

CLASSES = ("intact", "defective")
COUNTS = {"train": 1600, "test": 400}
SIDE = 300  # pixels
_FINE = 3  # cracks are drawn so many times as large


class Layout(NamedTuple):
    """Where the parts of a cell lie, in pixels.

    Attributes:
        bars: centre rows of the bus bars.
        bar_width: their width.
        period: distance between fingers.
        phase: of the first finger.
    """

    bars: np.ndarray
    bar_width: float
    period: float
    phase: float


def files(split: str, count: int, seed: int) -> Iterator[File]:
    for i in range(count):
        rng = generator("cells", seed, split, i)
        yield File(CLASSES[i % 2], ".png", png(picture(rng, defective=i % 2 == 1)))


def picture(rng: np.random.Generator, *, defective: bool) -> np.ndarray:
    """One cell, uint8 [300, 300]."""
    layout = _layout(rng)
    silicon = _one_crystal(rng) if rng.random() < 0.4 else _grains(rng)
    silicon *= _specks(rng)
    if defective:
        silicon *= _defects(rng, layout)
    cell = _contacts(rng, silicon, layout)
    cell = gaussian_filter(cell, rng.uniform(0.4, 1.1)) * lighting(rng, SIDE, SIDE, 0.25)
    # As by a camera that sets the exposure itself: mean brightness does not tell the class.
    contrast = rng.uniform(0.8, 1.25)
    cell = rng.uniform(80, 165) * (1 + contrast * (cell / cell.mean() - 1))
    noise = rng.standard_normal((SIDE, SIDE), np.float32) * np.sqrt(np.maximum(cell, 0))
    return to_bytes(cell + rng.uniform(0.15, 0.6) * noise)


def _layout(rng: np.random.Generator) -> Layout:
    count = int(rng.choice([2, 3, 3, 3, 3, 3, 4, 5]))
    centre = SIDE / 2 + rng.uniform(-4, 4)
    pitch = SIDE / count * rng.uniform(0.97, 1.0)
    bars = centre + pitch * (np.arange(count) - (count - 1) / 2)
    return Layout(bars, rng.uniform(14, 22) / count + 1, rng.uniform(4.0, 7.0), rng.uniform(0, 7))


def _one_crystal(rng: np.random.Generator) -> Field:
    """Nearly even, with faint rings as of a pulled crystal and cut corners."""
    y, x = grid(SIDE, SIDE)
    v, u = y - SIDE / 2, x - SIDE / 2
    radius = np.hypot(v + rng.uniform(-8, 8), u + rng.uniform(-8, 8))
    rings = smooth_noise(rng, 1, 240, 1, rng.uniform(5, 14))[0]
    field = 1 + rng.uniform(0.01, 0.05) * rings[radius.astype(int)]
    field += rng.uniform(0.01, 0.06) * smooth_noise(rng, SIDE, SIDE, 90)
    cut = rng.uniform(198, 216)
    field *= 1 - 0.85 * np.clip(np.hypot(v, u) - cut, 0, 1)
    return field.astype(np.float32)


def _grains(rng: np.random.Generator) -> Field:
    """Crystal grains of different brightness, with dark boundaries and clouds of dislocations."""
    half = SIDE // 2
    spacing = rng.uniform(9, 24)
    stretch = rng.uniform(0.7, 1.4)
    points = scatter(rng, half, half / stretch, spacing, 10) * (1, stretch)
    y, x = grid(half, half)
    y = y + 0.25 * spacing * fractal_noise(rng, half, half, spacing, 3)
    x = x + 0.25 * spacing * fractal_noise(rng, half, half, spacing, 3)
    labels = nearest_point(points, y, x).repeat(2, 0).repeat(2, 1)
    tones = 1 + rng.uniform(0.03, 0.11) * rng.standard_normal(len(points))
    field = tones[labels].astype(np.float32)
    edge = gaussian_filter(borders(labels).astype(np.float32), 0.8)
    field *= 1 - rng.uniform(0.05, 0.3) * edge
    clouds = fractal_noise(rng, SIDE, SIDE, rng.uniform(30, 70), 5)
    field *= 1 - rng.uniform(0.05, 0.4) * np.clip(clouds - 0.5, 0, 1)
    return np.maximum(field, 0.3)


def _specks(rng: np.random.Generator) -> Field:
    """Dust and stains, which are no defects."""
    y, x = grid(SIDE, SIDE)
    field = np.ones((SIDE, SIDE), np.float32)
    for _ in range(rng.poisson(1.5)):
        row, column = rng.uniform(0, SIDE, 2)
        radius = rng.uniform(2, 9)
        distance = np.hypot(y - row, x - column) / radius
        field *= 1 - rng.uniform(0.1, 0.35) * np.exp(-(distance**4))
    return field


def _contacts(rng: np.random.Generator, silicon: Field, layout: Layout) -> Field:
    """Adds fingers, bus bars, the fall of light between the bars, and the edge of the cell."""
    y, x = grid(SIDE, SIDE)
    to_bar = np.abs(y[..., None] - layout.bars.astype(np.float32)).min(-1)
    field = silicon * (1 - rng.uniform(0, 0.12) * to_bar / to_bar.max())
    fingers = 0.5 + 0.5 * np.cos(2 * np.pi * (x - layout.phase) / layout.period)
    field *= 1 - rng.uniform(0.02, 0.12) * fingers**3
    bar = np.clip(layout.bar_width / 2 - to_bar + 0.5, 0, 1)
    field *= 1 - rng.uniform(0.55, 0.85) * bar
    inset = rng.uniform(-2, 5, 4)  # the cut around the cell is never exact
    inside = np.minimum.reduce(
        [y - inset[0], SIDE - 1 - y - inset[1], x - inset[2], SIDE - 1 - x - inset[3]]
    )
    return field * np.clip(0.15 + inside, 0.15, 1)


def _defects(rng: np.random.Generator, layout: Layout) -> Field:
    """The factor by which one or two kinds of defects darken the silicon."""
    kinds = (_cracks, _dark_area, _stripes)
    chosen = rng.choice(3, 1 + int(rng.random() < 0.35), replace=False, p=(0.45, 0.3, 0.25))
    field = np.ones((SIDE, SIDE), np.float32)
    for kind in chosen:
        field *= kinds[kind](rng, layout)
    return field


def _walk(rng: np.random.Generator, start: np.ndarray, angle: float, length: float) -> np.ndarray:
    """A jagged line: points [N, 2] (x, y) of a random walk that keeps its direction."""
    steps = max(3, int(length / 7))
    angles = angle + np.cumsum(rng.normal(0, 0.22, steps))
    moves = rng.uniform(4, 10, steps)[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    return np.concatenate([start[None], start + np.cumsum(moves, 0)])


def _cracks(rng: np.random.Generator, layout: Layout) -> Field:
    image = Image.new("L", (SIDE * _FINE, SIDE * _FINE))
    draw = ImageDraw.Draw(image)

    def line(points: np.ndarray, width: float) -> None:
        draw.line([tuple(p) for p in points * _FINE], 255, max(1, round(width * _FINE)))

    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        start = rng.uniform(25, SIDE - 25, 2)
        if rng.random() < 0.5:  # cracks often start where a bar is soldered
            start[1] = rng.choice(layout.bars)
        angle = rng.choice([1, 3, 5, 7]) * np.pi / 4 + rng.normal(0, 0.35)
        width, length = rng.uniform(0.8, 2.0), rng.uniform(70, 260)
        trunk = _walk(rng, start, angle, length)
        line(trunk, width)
        for _ in range(int(rng.choice([0, 0, 1, 2]))):
            at = trunk[rng.integers(len(trunk))]
            turn = rng.choice([-1, 1]) * rng.uniform(0.5, 1.3)
            line(_walk(rng, at, angle + turn, 0.5 * length), 0.8 * width)
    mask = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    halo = gaussian_filter(mask, 3)
    return (1 - rng.uniform(0.35, 0.7) * mask) * (1 - rng.uniform(0.2, 0.6) * halo)


def _between_bars(rng: np.random.Generator, layout: Layout) -> tuple[float, float]:
    """First and last row of a strip between two bars, or between a bar and the edge."""
    rows = np.concatenate([[0.0], layout.bars, [float(SIDE)]])
    at = int(rng.integers(len(rows) - 1))
    return rows[at], rows[at + 1]


def _dark_area(rng: np.random.Generator, layout: Layout) -> Field:
    """A part of a strip that a crack cuts off from its bar."""
    top, bottom = _between_bars(rng, layout)
    y, x = grid(SIDE, SIDE)
    width = rng.uniform(50, 1.2 * SIDE)
    left = rng.uniform(-0.5 * width, SIDE - 0.5 * width)
    right = left + width
    ragged = rng.uniform(1, 4) * smooth_noise(rng, SIDE, 1, rng.uniform(8, 25))
    slant = rng.normal(0, 0.3) * (y - (top + bottom) / 2)
    across = np.minimum(x - left - ragged - slant, right - x + ragged + slant)
    edge = top if rng.random() < 0.5 else bottom
    reach = rng.uniform(0.6, 1.0) * (bottom - top)
    along = np.minimum(reach + 3 * smooth_noise(rng, 1, SIDE, 18) - np.abs(y - edge), 4.0)
    along = np.where((y >= top) & (y <= bottom), along, -1)
    mask = np.clip(np.minimum(across, along) / 1.5, 0, 1)
    mottled = 1 + 0.15 * fractal_noise(rng, SIDE, SIDE, 25, 3)
    return (1 - rng.uniform(0.3, 0.7) * mask * mottled).astype(np.float32)


def _stripes(rng: np.random.Generator, layout: Layout) -> Field:
    """Fingers that are broken or shunted: dark stripes along them."""
    y, x = grid(SIDE, SIDE)
    field = np.ones((SIDE, SIDE), np.float32)
    centre = rng.uniform(15, SIDE - 15)
    for _ in range(int(rng.integers(2, 8))):
        top, bottom = _between_bars(rng, layout)
        cut = rng.uniform(0.2, 1.0) * (bottom - top)
        top, bottom = (top, top + cut) if rng.random() < 0.5 else (bottom - cut, bottom)
        at = centre + rng.normal(0, 45)
        at = layout.phase + layout.period * (round((at - layout.phase) / layout.period) + 0.5)
        width = layout.period * rng.choice([1, 1, 2, 3]) / 2
        across = np.clip((width - np.abs(x - at)) / 2 + 0.5, 0, 1)
        along = np.clip(np.minimum(y - top, bottom - y) / rng.uniform(2, 15), 0, 1)
        field *= 1 - rng.uniform(0.15, 0.45) * across * along
    return field

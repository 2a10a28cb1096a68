"""Maps seen from above: land use, and its picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from .fields import (
    Field,
    borders,
    fractal_noise,
    grid,
    nearest_point,
    scatter,
    smooth_noise,
    to_bytes,
)

FIELD, FOREST, TOWN, WATER, ROAD = range(5)
CROPS = np.array(
    [[96, 128, 62], [126, 150, 76], [158, 160, 92], [186, 168, 116], [150, 122, 88],
     [112, 88, 64], [82, 112, 56], [196, 184, 104], [136, 140, 96]], np.float32
)  # fmt: skip
ROOFS = np.array(
    [[158, 82, 62], [134, 72, 58], [172, 108, 84], [118, 112, 110], [152, 148, 146],
     [96, 92, 96], [186, 180, 172], [128, 98, 78]], np.float32
)  # fmt: skip
ASPHALT = np.array([122, 120, 120], np.float32)


class Map(NamedTuple):
    """uint8 [H, W] of land use, and its picture float32 [H, W, 3] of 0 to 255."""

    use: np.ndarray
    picture: np.ndarray


def draw_map(rng: np.random.Generator, side: int) -> Map:
    """A square map of `side` pixels, of about a metre each."""
    use = _land_use(rng, side)
    picture = np.zeros((side, side, 3), np.float32)
    for kind, paint in ((FIELD, _fields), (FOREST, _forest), (TOWN, _town), (WATER, _water)):
        where = use == kind
        if where.any():
            picture[where] = paint(rng, side, where)
    picture = gaussian_filter(picture, (0.5, 0.5, 0))
    picture, roads = _roads(rng, picture, use == WATER)
    use[roads] = ROAD
    return Map(use, _weather(rng, picture))


def _land_use(rng: np.random.Generator, side: int) -> np.ndarray:
    """Rivers and lakes, towns, forests, and fields elsewhere."""
    use = np.full((side, side), FIELD, np.uint8)
    ragged = 0.12 * fractal_noise(rng, side, side, 40, 4)
    wood = fractal_noise(rng, side, side, 230, 3) + ragged
    use[wood > np.quantile(wood, 0.68)] = FOREST
    town = fractal_noise(rng, side, side, 260, 2) + 0.3 * ragged
    use[town > np.quantile(town, 0.72)] = TOWN
    lake = fractal_noise(rng, side, side, 240, 3) + 0.3 * ragged
    use[lake > np.quantile(lake, 0.87)] = WATER
    river = fractal_noise(rng, side, side, 520, 2) + 0.06 * ragged
    use[np.abs(river) < rng.uniform(0.03, 0.05)] = WATER
    return use


def _at(field: Field, where: np.ndarray) -> np.ndarray:
    return field[where][:, None]


def _fields(rng: np.random.Generator, side: int, where: np.ndarray) -> np.ndarray:
    """Parcels with furrows in a direction of their own; hedges and tracks between some."""
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.3, 2.2)
    y, x = grid(side, side)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    spacing = rng.uniform(60, 85)
    reach = 1.5 * side
    points = scatter(rng, 2 * reach, 2 * reach / stretch, spacing) - (reach, reach / stretch)
    labels = nearest_point(points, v, u / stretch)
    tone = CROPS[rng.integers(len(CROPS), size=len(points))]
    tone = tone * rng.uniform(0.85, 1.15, (len(points), 1)) + rng.normal(0, 5, (len(points), 3))
    angle = turn + rng.choice([0, np.pi / 2], len(points)) + rng.normal(0, 0.1, len(points))
    period, depth = rng.uniform(3, 9, len(points)), rng.uniform(0.0, 0.13, len(points))
    here = labels[where]
    along = x[where] * np.cos(angle[here]) + y[where] * np.sin(angle[here])
    furrow = 1 + depth[here] * np.sin(2 * np.pi * along / period[here])
    mottled = 1 + 0.06 * fractal_noise(rng, side, side, 30, 5)
    colour = tone[here] * furrow[:, None] * _at(mottled, where)
    edge = gaussian_filter(borders(labels).astype(np.float32), 1.0) * 2.2
    patchy = np.clip(smooth_noise(rng, side, side, 90) * 2, -1, 1)
    hedge, track = (
        _at(edge * np.clip(patchy, 0, 1), where),
        _at(edge * np.clip(-patchy, 0, 1), where),
    )
    hedge, track = np.minimum(hedge, 1), np.minimum(track, 1)
    colour = colour * (1 - hedge) + hedge * np.array([52, 74, 40])
    return colour * (1 - track) + track * np.array([176, 162, 134])


def _forest(rng: np.random.Generator, side: int, where: np.ndarray) -> np.ndarray:
    """Crowns, lit from one side; stands of different trees."""
    points = scatter(rng, side, side, rng.uniform(6.5, 8.5), 5)
    y, x = (axis[where] for axis in grid(side, side))
    crown = nearest_point(points, y, x)
    down, right = y - points[crown, 0], x - points[crown, 1]
    lit = 1 - 0.055 * (down + right) - 0.035 * np.hypot(down, right)
    stand = np.clip(fractal_noise(rng, side, side, 110, 3) * 0.8, -1, 1)
    tone = np.array([58, 82, 46]) + _at(stand, where) * np.array([22, 18, 8])
    each = rng.uniform(0.78, 1.22, len(points))[crown]
    return tone * (np.clip(lit, 0.45, 1.3) * each)[:, None]


def _town(rng: np.random.Generator, side: int, where: np.ndarray) -> np.ndarray:
    """Districts of streets in a direction of their own, with houses, shadows and gardens."""
    y, x = (axis[where] for axis in grid(side, side))
    spacing = rng.uniform(220, 300)
    points = scatter(rng, side, side, spacing, spacing)
    district = nearest_point(points, y, x)
    angle = rng.uniform(0, np.pi / 2, len(points))[district]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    lot = rng.uniform(13, 26, len(points))[district]
    depth = lot * rng.uniform(0.9, 1.4, len(points))[district]
    across = rng.integers(3, 6, len(points))[district]
    street = rng.uniform(5, 8, len(points))[district]
    block_u, block_v = lot * across + street, 2 * depth + street
    in_u, in_v = u % block_u, v % block_v
    on_street = (in_u > block_u - street) | (in_v > block_v - street)
    column, row = in_u // lot, in_v // depth
    key = (u // block_u * 8 + column).astype(np.int64) * 7919 + district * 104_729
    key = (key + (v // block_v * 2 + row).astype(np.int64) * 15_485_863) % 65_536

    def drawn(low: float, high: float) -> np.ndarray:
        """A number of each lot."""
        return rng.uniform(low, high, 65_536)[key]

    wide, deep = lot * drawn(0.25, 0.42), depth * drawn(0.2, 0.38)
    off_u = in_u - (column + 0.5) * lot - drawn(-1, 1)
    off_v = in_v - (row + 0.5) * depth - drawn(-1, 1)
    house = (np.abs(off_u) < wide) & (np.abs(off_v) < deep) & (drawn(0, 1) > 0.08) & ~on_street
    # Shadows fall in one direction of the picture, whatever the direction of the streets.
    shift_u = 2.5 * (np.cos(angle) + np.sin(angle))
    shift_v = 2.5 * (np.cos(angle) - np.sin(angle))
    shade = (np.abs(off_u - shift_u) < wide) & (np.abs(off_v - shift_v) < deep) & ~house
    garden = np.array([110, 122, 84]) + fractal_noise(rng, side, side, 9, 3)[where][:, None] * 14
    paved = (drawn(0, 1) < 0.3)[:, None]
    colour = np.where(paved, np.array([150, 146, 140]), garden)
    trees = (smooth_noise(rng, side, side, 7)[where] > 1.2)[:, None]
    colour = np.where(trees, np.array([62, 84, 48]), colour)
    colour = np.where(on_street[:, None], ASPHALT + 6, colour)
    colour = np.where(shade[:, None], colour * 0.55, colour)
    roof = ROOFS[rng.integers(len(ROOFS), size=65_536)[key]] * drawn(0.85, 1.2)[:, None]
    ridge = np.where(drawn(0, 1) < 0.5, off_u, off_v) > 0  # the lit and the other half of a roof
    return np.where(house[:, None], roof * np.where(ridge, 0.82, 1.08)[:, None], colour)


def _water(rng: np.random.Generator, side: int, where: np.ndarray) -> np.ndarray:
    """Deeper away from the shore; waves and a little glint."""
    shore = gaussian_filter((~where).astype(np.float32), 7)
    deep, shallow = np.array([44, 70, 86]), np.array([92, 112, 100])
    tone = deep + np.clip(_at(shore, where) * 2, 0, 1) * (shallow - deep)
    waves = smooth_noise(rng, side, side, 2, 5) * 0.04 + 0.06 * smooth_noise(rng, side, side, 60)
    return tone * (1 + _at(waves, where))


def _roads(
    rng: np.random.Generator, picture: np.ndarray, water: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws country roads, which end at the water, and motorways.

    Returns:
        The picture, and bool [H, W] of the motorways.
    """
    side = len(picture)
    image = Image.fromarray(to_bytes(picture))
    without = image.copy()
    draw, mask = ImageDraw.Draw(image), Image.new("L", (side, side))
    for _ in range(round(side / 180)):
        draw.line(_route(rng, side), (158, 152, 140), int(rng.integers(4, 6)), joint="curve")
    image.paste(without, mask=Image.fromarray(water))
    for _ in range(round(side / 200)):
        route, width = _route(rng, side), int(rng.integers(16, 23))
        ImageDraw.Draw(mask).line(route, 255, width + 4, joint="curve")
        draw.line(route, (96, 104, 72), width + 4, joint="curve")
        draw.line(route, (122 - int(rng.integers(0, 30)),) * 3, width, joint="curve")
        draw.line(route, (182, 184, 176), 2, joint="curve")
        for _ in range(round(side / 12)):  # cars
            x, y = route[int(rng.integers(len(route)))]
            x, y = x + rng.uniform(-0.35, 0.35) * width, y + rng.uniform(-0.35, 0.35) * width
            draw.rectangle((x, y, x + 3, y + 2), tuple(rng.integers(40, 245, 3).tolist()))
    return np.asarray(image, np.float32), np.asarray(mask) > 0


def _route(rng: np.random.Generator, side: int) -> list[tuple[float, float]]:
    """Points (x, y) of a winding line across the map."""
    angle = rng.uniform(0, 2 * np.pi)
    middle = rng.uniform(0, side, 2)
    along = np.linspace(-1.5 * side, 1.5 * side, 400)
    wave = sum(
        rng.normal(0, 0.12) * length * np.sin(2 * np.pi * along / length + rng.uniform(0, 6.3))
        for length in (side, 0.6 * side, 0.35 * side)
    )
    x = middle[0] + along * np.cos(angle) - wave * np.sin(angle)
    y = middle[1] + along * np.sin(angle) + wave * np.cos(angle)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _weather(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Season, haze and shadows of clouds, which change over the map."""
    side = len(picture)
    season = rng.uniform(0.9, 1.1, 3)
    clouds = np.clip(fractal_noise(rng, side, side, 260, 3) - 0.9, 0, 0.3) / 0.3
    light = (1 + 0.1 * smooth_noise(rng, side, side, 300)) * (1 - 0.35 * clouds)
    haze = np.clip(0.12 + 0.1 * smooth_noise(rng, side, side, 350), 0, 0.35)[..., None]
    picture = picture * season * light[..., None]
    picture = picture * (1 - haze) + haze * np.array([196, 202, 210])
    return (picture + rng.normal(0, 3, picture.shape)).astype(np.float32)

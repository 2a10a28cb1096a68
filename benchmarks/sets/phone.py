"""`phone`: photographs of the size and the files of a telephone's.

Things cut out of photographs (the set `stamps`) lie on a lit background of wood, cloth, stone,
grass or paper. The class is the theme of the thing. Portraits are stored lying down, with the EXIF
orientation that turns them upright, as telephones do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageChops
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
from .files import File, generator, jpeg

THEMES = ("animals", "food", "household", "plants", "town", "vehicles")
COUNTS = {"train": 240, "test": 60}
SIZE = 4000, 3000  # width and height in pixels
_COARSE = 4  # backgrounds are drawn at a fraction of the size and enlarged
_TURNS = {1: 0, 3: 2, 6: 1, 8: 3}  # EXIF orientation -> quarter turns (anticlockwise) when stored


def files(split: str, count: int, seed: int) -> Iterator[File]:
    yield from photographs(split, count, seed, SIZE)


def photographs(split: str, count: int, seed: int, size: tuple[int, int]) -> Iterator[File]:
    """Photographs of `size` (width, height) as JPEG files of all classes in turn."""
    things = _things(split)
    classes = sorted(things)
    for i in range(count):
        rng = generator("phone", seed, split, i)
        label = classes[i % len(classes)]
        thing = things[label][int(rng.integers(len(things[label])))]()
        orientation = int(rng.choice([1, 6, 3, 8], p=[0.5, 0.35, 0.1, 0.05]))
        width, height = size if orientation in (1, 3) else size[::-1]
        pixels = np.rot90(_photograph(rng, thing, height, width), _TURNS[orientation])
        quality = int(rng.integers(88, 93))
        yield File(label, ".jpg", jpeg(np.ascontiguousarray(pixels), quality, orientation))


def _photograph(
    rng: np.random.Generator, thing: Image.Image, height: int, width: int
) -> np.ndarray:
    """A thing (RGBA) on a background, uint8 [H, W, 3]."""
    rows, columns = height // _COARSE, width // _COARSE
    ground = _GROUNDS[int(rng.integers(len(_GROUNDS)))](rng, rows, columns)
    light = lighting(rng, rows, columns, 0.55) * rng.uniform(0.75, 1.1)
    lamp = light[..., None] * (1 + rng.normal(0, 0.07, 3)).astype(np.float32)
    thing = _turned(rng, thing, rng.uniform(0.35, 0.85) * min(height, width))
    top = int(rng.integers(max(1, height - thing.height))) if thing.height < height else 0
    left = int(rng.integers(max(1, width - thing.width))) if thing.width < width else 0
    shadow = np.zeros((rows, columns), np.float32)
    small = thing.getchannel("A").resize(
        (max(1, thing.width // _COARSE), max(1, thing.height // _COARSE))
    )
    y, x = top // _COARSE, left // _COARSE
    part = shadow[y : y + small.height, x : x + small.width]
    part[:] = np.asarray(small, np.float32)[: part.shape[0], : part.shape[1]] / 255
    far = rng.uniform(0.01, 0.035) * rows
    angle = rng.uniform(0, 2 * np.pi)
    shadow = np.roll(shadow, (int(far * np.sin(angle)), int(far * np.cos(angle))), (0, 1))
    shadow = gaussian_filter(shadow, far * rng.uniform(0.25, 0.7))
    lit = ground * lamp * (1 - rng.uniform(0.35, 0.7) * shadow[..., None])
    picture = Image.fromarray(to_bytes(lit)).resize((width, height), Image.Resampling.BICUBIC)
    colour = np.asarray(thing.convert("RGB"), np.float32)
    place = (left / _COARSE, top / _COARSE)
    box = (*place, place[0] + thing.width / _COARSE, place[1] + thing.height / _COARSE)
    shade = Image.fromarray(light).resize(
        thing.size, Image.Resampling.BILINEAR, box=_inside(box, light)
    )
    colour = colour * np.asarray(shade)[..., None] * lamp[0, 0] / light[0, 0]
    picture.paste(Image.fromarray(to_bytes(colour)), (left, top), thing.getchannel("A"))
    return np.asarray(_with_noise(rng, picture))


def _inside(box: tuple[float, ...], field: Field) -> tuple[float, ...]:
    """The box (left, top, right, bottom) cut at the edges of a field."""
    rows, columns = field.shape
    return (box[0], box[1], min(box[2], columns), min(box[3], rows))


def _turned(rng: np.random.Generator, thing: Image.Image, side: float) -> Image.Image:
    """The thing, its longer side `side` pixels, mirrored by chance and a little inclined."""
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    thing = thing.rotate(rng.normal(0, 14), Image.Resampling.BICUBIC, expand=True)
    scale = side / max(thing.size)
    size = (max(1, round(thing.width * scale)), max(1, round(thing.height * scale)))
    return thing.resize(size, Image.Resampling.BICUBIC)


def _things(split: str) -> dict[str, list[Callable[[], Image.Image]]]:
    """By class: readers of pictures with opacity (RGBA)."""
    from nolabel.data.open import open_source

    source = open_source(f"stamps:{split}")
    things: dict[str, list[Callable[[], Image.Image]]] = {theme: [] for theme in THEMES}
    for i in range(len(source)):
        theme = source.classes[source.label(i) or 0]
        if theme in things:
            things[theme].append(functools.partial(_with_opacity, source.path(i)))
    return things


def _with_opacity(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA")


@functools.cache
def _plate() -> Image.Image:
    """Noise of a sensor around 128, standard deviation 16; pictures take parts of it."""
    rng = generator("noise", 0, "")
    return Image.fromarray(to_bytes(128 + 16 * rng.standard_normal((4200, 4200), np.float32)))


def _with_noise(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    plate, (width, height) = _plate(), picture.size
    left, top = (int(rng.integers(4200 - side)) for side in (width, height))
    gain = rng.uniform(0.15, 0.45)
    noise = plate.crop((left, top, left + width, top + height))
    noise = noise.point([round(128 + gain * (value - 128)) for value in range(256)])
    return ImageChops.add(picture, Image.merge("RGB", [noise] * 3), 1, -128)


def _wood(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Planks with grain along them."""
    y, x = grid(rows, columns)
    wide = rng.uniform(0.09, 0.3) * rows
    plank = (y // wide).astype(int)
    tone = rng.normal(0, 0.09, plank.max() + 1)[plank]
    grain = smooth_noise(rng, rows, columns, 4, 260) + 0.7 * smooth_noise(
        rng, rows, columns, 14, 400
    )
    rings = np.sin(smooth_noise(rng, rows, columns, 0.35 * wide, 700) * 9 + 0.02 * y)
    value = 1 + tone + 0.07 * grain + 0.06 * rings
    value *= 1 - 0.5 * (y % wide < 2)
    base = np.array([150, 108, 70]) * rng.uniform(0.55, 1.35) + rng.normal(0, 8, 3)
    return _quarter_turned(rng, (value[..., None] * base).astype(np.float32), rows, columns)


def _quarter_turned(
    rng: np.random.Generator, ground: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """The ground as it is, or lying across, cut to the same size."""
    if rng.random() < 0.5 or min(rows, columns) < 2:
        return ground
    tall = Image.fromarray(to_bytes(ground)).transpose(Image.Transpose.ROTATE_90)
    return np.asarray(tall.resize((columns, rows), Image.Resampling.BICUBIC), np.float32)


def _cloth(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A weave with folds; sometimes checked."""
    y, x = grid(rows, columns)
    period = rng.uniform(4, 9)
    weave = np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period)
    folds = fractal_noise(rng, rows, columns, 0.4 * rows, 3)
    value = 1 + 0.07 * weave + 0.12 * folds + 0.03 * smooth_noise(rng, rows, columns, 2)
    base = rng.uniform(50, 225, 3)
    colour = np.broadcast_to(base, (rows, columns, 3))
    if rng.random() < 0.4:
        side = rng.uniform(30, 90)
        check = ((y // side) % 2 + (x // side) % 2)[..., None] / 2
        colour = base * (1 - check) + rng.uniform(60, 240, 3) * check
    return (value[..., None] * colour).astype(np.float32)


def _stone(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Cobbles or gravel with joints."""
    spacing = rng.uniform(18, 90)
    points = scatter(rng, rows, columns, spacing, spacing)
    y, x = grid(rows, columns)
    y = y + 0.12 * spacing * fractal_noise(rng, rows, columns, spacing, 3)
    x = x + 0.12 * spacing * fractal_noise(rng, rows, columns, spacing, 3)
    labels = nearest_point(points, y, x)
    tone = 1 + 0.14 * rng.standard_normal(len(points))[labels]
    joint = np.minimum(gaussian_filter(borders(labels).astype(np.float32), 1.8) * 4, 1)
    down, right = y - points[labels, 0], x - points[labels, 1]
    value = (tone - 0.25 * (down + right) / spacing) * (1 - 0.6 * joint)
    value = value * (1 + 0.1 * fractal_noise(rng, rows, columns, 12, 4))
    base = np.array([138, 134, 128]) * rng.uniform(0.7, 1.25) + rng.normal(0, 9, 3)
    return (np.maximum(value, 0.1)[..., None] * base).astype(np.float32)


def _grass(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Blades in all directions near the vertical, in patches."""
    blades = [
        smooth_noise(rng, rows, columns, long, wide)
        for long, wide in ((26, 2.2), (18, 2.6), (12, 2.0))
    ]
    value = 0.9 + 0.26 * np.maximum.reduce(blades) + 0.1 * fractal_noise(rng, rows, columns, 90, 3)
    dry = np.clip(0.3 + 0.4 * fractal_noise(rng, rows, columns, 60, 4), 0, 1)[..., None]
    base = np.array([66, 104, 42]) * (1 - dry) + np.array([142, 138, 74]) * dry
    return (np.clip(value, 0.15, 2)[..., None] * base * rng.uniform(0.75, 1.2)).astype(np.float32)


def _paper(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A plain table, wall or sheet, hardly structured."""
    value = 1 + 0.02 * fractal_noise(rng, rows, columns, 200, 6)
    base = rng.uniform(90, 235) + rng.normal(0, 14, 3)
    return (value[..., None] * base).astype(np.float32)


def _floor(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Square floor tiles with joints, of one material."""
    y, x = grid(rows, columns)
    turn = rng.uniform(-0.4, 0.4)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    side, joint = rng.uniform(110, 320), rng.uniform(3, 7)
    tones = rng.normal(0, 0.05, (64, 64))
    tone = tones[(v // side).astype(int) % 64, (u // side).astype(int) % 64]
    veins = np.abs(fractal_noise(rng, rows, columns, 160, 5))
    value = 1 + tone - 0.16 * np.exp(-6 * veins)
    value = np.where((u % side < joint) | (v % side < joint), 0.6, value)
    base = rng.uniform(120, 220) + rng.normal(0, 16, 3)
    return (value[..., None] * base).astype(np.float32)


_GROUNDS = (_wood, _cloth, _stone, _grass, _paper, _floor)

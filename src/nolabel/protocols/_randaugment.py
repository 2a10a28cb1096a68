"""RandAugment as fine-tuning recipes use it: rand-mM-mstd0.5-inc1.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
2019, arXiv 1909.13719, on the scale of MAE's and BEiT's recipes: two of fifteen operations, drawn
with replacement; each is applied with probability 1/2, at a level drawn from a normal distribution
of deviation 1/2 about M and cut to 0..10. A higher level changes the image more, also for
posterise, solarise and the enhancements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

COUNT = 2  # operations an image
PROBABILITY = 0.5  # that a drawn operation is applied
DEVIATION = 0.5  # of the level
HIGHEST = 10.0  # level

Colour = tuple[int, ...]  # of the pixels that a move uncovers
Operation = Callable[[Image.Image, float, Colour], Image.Image]


def _affine(image: Image.Image, rows: tuple[float, ...], fill: Colour) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC,
                           fillcolor=fill)  # fmt: skip


def _solarise_add(image: Image.Image, amount: float) -> Image.Image:
    """Adds to the channel values below 128."""
    table = [min(255, i + int(amount)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def _posterise(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest bits of each channel; none at the highest level, which Pillow refuses."""
    mask = 256 - 2 ** (8 - bits)
    return image.point([i & mask for i in range(256)] * len(image.getbands()))


# Name -> the operation on an image with its argument (`argument`).
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda x, a, fill: ImageOps.autocontrast(x),
    "Equalize": lambda x, a, fill: ImageOps.equalize(x),
    "Invert": lambda x, a, fill: ImageOps.invert(x),
    "Rotate": lambda x, a, fill: x.rotate(a, Image.Resampling.BICUBIC, fillcolor=fill),
    "PosterizeIncreasing": lambda x, a, fill: _posterise(x, int(a)),
    "SolarizeIncreasing": lambda x, a, fill: ImageOps.solarize(x, int(a)),
    "SolarizeAdd": lambda x, a, fill: _solarise_add(x, a),
    "ColorIncreasing": lambda x, a, fill: ImageEnhance.Color(x).enhance(a),
    "ContrastIncreasing": lambda x, a, fill: ImageEnhance.Contrast(x).enhance(a),
    "BrightnessIncreasing": lambda x, a, fill: ImageEnhance.Brightness(x).enhance(a),
    "SharpnessIncreasing": lambda x, a, fill: ImageEnhance.Sharpness(x).enhance(a),
    "ShearX": lambda x, a, fill: _affine(x, (1, a, 0, 0, 1, 0), fill),
    "ShearY": lambda x, a, fill: _affine(x, (1, 0, 0, a, 1, 0), fill),
    "TranslateXRel": lambda x, a, fill: _affine(x, (1, 0, a * x.width, 0, 1, 0), fill),
    "TranslateYRel": lambda x, a, fill: _affine(x, (1, 0, 0, 0, 1, a * x.height), fill),
}
# What these operations get at the highest level; the sign is random.
_LARGEST = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45,
            "TranslateYRel": 0.45}  # fmt: skip
_ENHANCEMENTS = ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing",
                 "SharpnessIncreasing")  # fmt: skip


def argument(name: str, level: float, negated: bool = False) -> float | None:
    """What an operation gets at a level.

    Args:
        name: of the operation, a key of `OPERATIONS`.
        level: from 0 to 10.
        negated: whether the random sign is negative; only where there is one.

    Returns:
        Degrees, a share of the side, bits kept, a threshold, an amount or a factor, as the
        operation takes it; None if it takes nothing.
    """
    share, sign = level / HIGHEST, -1.0 if negated else 1.0
    if name in _LARGEST:
        return sign * share * _LARGEST[name]
    if name in _ENHANCEMENTS:
        return max(0.1, 1 + sign * share * 0.9)
    if name == "PosterizeIncreasing":
        return float(4 - int(share * 4))
    if name == "SolarizeIncreasing":
        return float(256 - int(share * 256))
    if name == "SolarizeAdd":
        return float(min(128, int(share * 110)))
    return None


def rand_augment(
    image: np.ndarray, magnitude: float, rng: np.random.Generator, fill: Colour
) -> np.ndarray:
    """Applies two random operations to an image.

    Args:
        image: uint8 [H, W, 3].
        magnitude: mean level, from 0 to 10.
        rng: random numbers; as many are drawn whatever happens.
        fill: colour of the pixels that a move uncovers.

    Returns:
        uint8 [H, W, 3].
    """
    names = list(OPERATIONS)
    which = rng.integers(len(names), size=COUNT)
    applied = rng.random(COUNT) < PROBABILITY
    levels = rng.normal(magnitude, DEVIATION, COUNT).clip(0, HIGHEST)
    negated = rng.random(COUNT) < 0.5
    if not applied.any():
        return image
    out = Image.fromarray(image)
    for i in np.flatnonzero(applied):
        name = names[which[i]]
        value = argument(name, float(levels[i]), bool(negated[i]))
        out = OPERATIONS[name](out, 0.0 if value is None else value, fill)
    return np.asarray(out)

"""Common corruptions of images with five strengths.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", 2019, arXiv 1903.12261; same strengths, with lengths in pixels scaled from 224 px.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

STRENGTHS = (1, 2, 3, 4, 5)


def _pixels(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).round().astype(np.uint8)


def _noise(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    return _pixels(image / 255 + rng.normal(0, deviation, image.shape))


def _blur(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    radius = (1, 2, 3, 4, 6)[level] * min(image.shape[:2]) / 224
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _brightness(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Raises the value of HSV: the largest channel by a constant, the others in proportion."""
    x = image / 255
    value = x.max(-1, keepdims=True)
    raised = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 1)
    return _pixels(np.where(value > 0, x * raised / np.maximum(value, 1e-9), raised))


def _contrast(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    x = image / 255
    mean = x.mean((0, 1), keepdims=True)
    return _pixels((x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean)


def _jpeg(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.array(Image.open(buffer).convert("RGB"))


def _pixelate(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    scale = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    h, w = image.shape[:2]
    small = Image.fromarray(image).resize(
        (max(int(w * scale), 1), max(int(h * scale), 1)), Image.Resampling.BOX
    )
    return np.array(small.resize((w, h), Image.Resampling.NEAREST))


_FUNCTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": _noise, "blur": _blur, "brightness": _brightness, "contrast": _contrast,
    "jpeg": _jpeg, "pixelate": _pixelate,
}  # fmt: skip
CORRUPTIONS = tuple(_FUNCTIONS)


def corrupted(image: np.ndarray, name: str, strength: int, seed: tuple[int, ...]) -> np.ndarray:
    """Corrupts an image, deterministically for a seed.

    Args:
        image: uint8 [H, W, 3].
        name: one of `CORRUPTIONS`.
        strength: 1 to 5.
        seed: seed of the random values.

    Returns:
        uint8 [H, W, 3].
    """
    return _FUNCTIONS[name](image, strength - 1, np.random.default_rng((*seed, strength)))

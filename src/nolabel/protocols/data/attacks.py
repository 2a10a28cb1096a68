"""Alterations of images for copy detection: crop, JPEG, blur, paste on a background, text."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Attack = Callable[[Image.Image, np.random.Generator], Image.Image]
QUALITIES = (75, 50, 20, 10, 5, 3)  # of JPEG
SHARES = (0.8, 0.5, 0.3)  # of the area that a crop keeps


def _crop(share: float) -> Attack:
    def attack(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        w, h = (max(int(s * share**0.5), 1) for s in image.size)
        left = int(rng.integers(0, image.width - w + 1))
        top = int(rng.integers(0, image.height - h + 1))
        return image.crop((left, top, left + w, top + h))

    return attack


def _jpeg(quality: int) -> Attack:
    def attack(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return attack


def _blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.025 * max(image.size)))


def _paste(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Resizes to 70 % and pastes at a random position on a gradient of two colours."""
    low, high = rng.integers(0, 256, (2, 3))
    ramp = np.linspace(0, 1, image.width)[None, :, None]
    background = (low + (high - low) * ramp).repeat(image.height, 0).astype(np.uint8)
    out = Image.fromarray(background)
    w, h = max(int(0.7 * image.width), 1), max(int(0.7 * image.height), 1)
    position = (
        int(rng.integers(0, image.width - w + 1)),
        int(rng.integers(0, image.height - h + 1)),
    )
    out.paste(image.resize((w, h), Image.Resampling.BICUBIC), position)
    return out


def _text(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draws two lines of random letters, white with a black outline."""
    out = image.copy()
    draw = ImageDraw.Draw(out)
    size = max(image.height // 5, 6)
    words = ["".join(chr(int(c)) for c in rng.integers(65, 91, 7)) for _ in range(2)]
    for word, position in zip(words, (0.05, 0.7), strict=True):
        draw.text(
            (0.06 * image.width, position * image.height), word, fill="white", stroke_fill="black",
            stroke_width=max(size // 12, 1), font_size=size,
        )  # fmt: skip
    return out


ATTACKS: dict[str, Attack] = {
    **{f"cut {share:.0%}": _crop(share) for share in SHARES},
    **{f"jpeg {quality}": _jpeg(quality) for quality in QUALITIES},
    "blur": _blur, "paste": _paste, "text": _text,
}  # fmt: skip


def attacked(image: np.ndarray, name: str, seed: tuple[int, ...]) -> np.ndarray:
    """Alters an image, deterministically for a seed.

    Args:
        image: uint8 [H, W, 3].
        name: one of `ATTACKS`.
        seed: seed of the random values.

    Returns:
        uint8 [H', W', 3]; a crop is smaller.
    """
    rng = np.random.default_rng(seed)
    return np.array(ATTACKS[name](Image.fromarray(image), rng).convert("RGB"))

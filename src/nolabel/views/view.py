"""One kind of view of an image, as data.

The order of operations is fixed, as in the papers: crop and resize, flips, quarter turns, colour
jitter, greyscale, blur, solarise, noise, normalise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nolabel.errors import UsageError, unknown

INTERPOLATIONS = ("bicubic", "bilinear")
SOLARISE_THRESHOLD = 128  # of 255; pixels at or above it are inverted


@dataclass(frozen=True, kw_only=True)
class View:
    """One kind of view and how many copies of it are drawn from every image.

    Attributes:
        name: key in `Batch.views`, such as "global", "local" or "image".
        count: copies, V.
        size: side of the square output in pixels.
        scale: smallest and largest area of the random crop, as fractions of the image. None
            resizes the shorter side and crops the centre instead (evaluation).
        ratio: smallest and largest width / height of the random crop; not used without `scale`.
        interpolation: "bicubic" or "bilinear"; both antialiased.
        flip: probability of a left-right flip.
        vertical_flip: probability of an upside-down flip.
        quarter_turns: probability of a turn by 90, 180 or 270 degrees, each equally likely; with
            3 / 4 all four directions are.
        jitter: strength of brightness, contrast, saturation and hue. The first three factors
            are uniform in [max(0, 1 - strength), 1 + strength], the shift of hue in
            [-strength, strength] turns of the colour circle. Their order is random.
        channel_jitter: strength of the jitter of each channel by itself, for any number of
            channels: factors uniform in [max(0, 1 - strength), 1 + strength], before `jitter`.
        jitter_p: probability of both jitters, together.
        grey: probability of removing colour.
        blur: probability of a Gaussian blur, one value per copy, or one for all copies.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of the output.
        solarise: probability of inverting the bright pixels (from 128 of 255), one value per
            copy, or one for all copies.
        noise: probability of Gaussian noise on every channel of every pixel.
        noise_sigma: smallest and largest standard deviation of the noise, as shares of the range
            from black to white.
        resize: without `scale`: length of the shorter side before the centre crop; None means
            the same as `size`.
    """

    name: str
    count: int = 1
    size: int
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    vertical_flip: float = 0.0
    quarter_turns: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    channel_jitter: float = 0.0
    jitter_p: float = 0.8
    grey: float = 0.0
    blur: tuple[float, ...] = (0.0,)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: tuple[float, ...] = (0.0,)
    noise: float = 0.0
    noise_sigma: tuple[float, float] = (0.0, 0.1)
    resize: int | None = None

    def __post_init__(self) -> None:
        for field in ("scale", "ratio", "jitter", "blur", "blur_sigma", "solarise", "noise_sigma"):
            value = getattr(self, field)  # lists, as YAML gives them, become tuples
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, field, tuple(float(v) for v in value))
        self._check_shape()
        self._check_colour()

    def _invalid(self, field: str, allowed: str) -> UsageError:
        return UsageError(
            f"View {self.name!r}: {field} is {getattr(self, field)!r}, but must be {allowed}."
        )

    def _check_shape(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise self._invalid("name", "a non-empty string")
        for field in ("count", "size"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise self._invalid(field, "a whole number of at least 1")
        if self.scale is not None and not (
            len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1
        ):
            raise self._invalid(
                "scale", "None or (smallest, largest) with 0 < smallest <= largest <= 1"
            )
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1] < math.inf):
            raise self._invalid("ratio", "(smallest, largest) with 0 < smallest <= largest")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", str(self.interpolation), INTERPOLATIONS)
        if self.resize is not None:
            if self.scale is not None:
                raise self._invalid(
                    "resize", "None when `scale` is given; set scale=None to use it"
                )
            if not isinstance(self.resize, int) or self.resize < self.size:
                raise self._invalid(
                    "resize", f"None or a whole number of at least size={self.size}"
                )

    def _check_colour(self) -> None:
        for field in ("flip", "vertical_flip", "quarter_turns", "jitter_p", "grey", "noise"):
            if not 0 <= getattr(self, field) <= 1:
                raise self._invalid(field, "a probability in 0..1")
        if len(self.jitter) != 4 or not all(0 <= v < math.inf for v in self.jitter):
            raise self._invalid(
                "jitter", "four strengths >= 0: brightness, contrast, saturation, hue"
            )
        if self.jitter[3] > 0.5:
            raise self._invalid("jitter", "at most 0.5 in its last value (hue, half a turn)")
        if not 0 <= self.channel_jitter < math.inf:
            raise self._invalid("channel_jitter", "a strength >= 0")
        sigma = self.noise_sigma
        if not (len(sigma) == 2 and 0 <= sigma[0] <= sigma[1] <= 1):
            raise self._invalid("noise_sigma", "(smallest, largest) with 0 <= both <= 1")
        for field in ("blur", "solarise"):
            value = getattr(self, field)
            if not isinstance(value, tuple) or len(value) not in {1, self.count}:
                allowed = "1 value" if self.count == 1 else f"1 or {self.count} values"
                raise self._invalid(field, f"a tuple of {allowed} (one per copy)")
            if not all(0 <= v <= 1 for v in value):
                raise self._invalid(field, "made of probabilities in 0..1")
        if not (
            len(self.blur_sigma) == 2 and 0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf
        ):
            raise self._invalid("blur_sigma", "(smallest, largest) with 0 < smallest <= largest")

    def blur_of(self, copy: int) -> float:
        """Probability of blur of copy 0, 1, ..."""
        return self.blur[copy if len(self.blur) > 1 else 0]

    def solarise_of(self, copy: int) -> float:
        """Probability of solarising copy 0, 1, ..."""
        return self.solarise[copy if len(self.solarise) > 1 else 0]

    @property
    def blur_radius(self) -> int:
        """Half width of the blur kernel: 3 times the largest sigma, below `size`."""
        return min(math.ceil(3 * self.blur_sigma[1]), self.size - 1)

    def describe(self) -> str:
        """One line of text that names the operations that are on."""
        copies = f"{self.count} x " if self.count > 1 else ""
        parts = [f"{self.name}: {copies}{self.size} px"]
        if self.scale is None:
            parts.append(f"centre of shorter side {self.resize or self.size}")
        else:
            parts.append(f"crop {_span(self.scale)} of the area, aspect {_span(self.ratio)}")
        parts.append(self.interpolation)
        if self.flip:
            parts.append(f"flip p={self.flip:g}")
        if self.vertical_flip:
            parts.append(f"vertical flip p={self.vertical_flip:g}")
        if self.quarter_turns:
            parts.append(f"quarter turns p={self.quarter_turns:g}")
        if self.jitter_p and any(self.jitter):
            names = ("brightness", "contrast", "saturation", "hue")
            on = [f"{n} {v:g}" for n, v in zip(names, self.jitter, strict=True) if v]
            parts.append(f"jitter {' '.join(on)} p={self.jitter_p:g}")
        if self.jitter_p and self.channel_jitter:
            parts.append(f"channels {self.channel_jitter:g} p={self.jitter_p:g}")
        if self.grey:
            parts.append(f"grey p={self.grey:g}")
        if any(self.blur):
            parts.append(f"blur sigma {_span(self.blur_sigma)} px p={_per_copy(self.blur)}")
        if any(self.solarise):
            parts.append(f"solarise p={_per_copy(self.solarise)}")
        if self.noise:
            parts.append(f"noise sigma {_span(self.noise_sigma)} of the range p={self.noise:g}")
        return ", ".join(parts)


def _span(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3g}-{pair[1]:.3g}"


def _per_copy(values: tuple[float, ...]) -> str:
    return "/".join(f"{v:g}" for v in values)

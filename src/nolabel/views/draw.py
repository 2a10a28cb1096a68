"""Draws the random parameters of the views, statelessly from (seed, epoch, sample, view, copy).

The uniform numbers come from a counter-based hash. So the views of a sample do not depend on the
rest of its batch, on the order of batches or on the number of workers, and there is no RNG state.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nolabel.nn.keyed_random import uniform
from nolabel.views.plan import View, ViewPlan

_TRIES = 10  # as in torchvision's RandomResizedCrop

# Index of the uniform number that each parameter uses. Only append: changing an index would change
# the views of runs that are resumed or repeated.
_TOP, _LEFT = 2 * _TRIES, 2 * _TRIES + 1
_FLIP, _JITTER = 22, 23
_FACTORS = slice(24, 28)
_ORDER = slice(28, 32)
_GREY, _BLUR, _SIGMA, _SOLARISE = 32, 33, 34, 35
_VERTICAL_FLIP, _TURNS = 36, 37
_NOISE, _NOISE_SIGMA, _NOISE_SEED = 38, 39, 40
_CHANNELS = 41  # and one for each further channel


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of one copy of one view for a batch: arrays with first axis B.

    The box is cropped from the image and resized to `rows` x `columns`; the view is the window of
    size x size at (`window_top`, `window_left`). For random crops, the window is the resized box;
    for evaluation, the box is the image.
    """

    top: np.ndarray  # int64 [B]: the box in pixels of the source
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    rows: np.ndarray  # int64 [B]: in pixels of the output
    columns: np.ndarray
    window_top: np.ndarray
    window_left: np.ndarray
    flip: np.ndarray  # bool [B]: left-right
    vertical_flip: np.ndarray  # bool [B]
    turns: np.ndarray  # int64 [B]: quarter turns anticlockwise, 0 to 3, after the flips
    jitter: np.ndarray  # bool [B]: whether the jitter is applied
    factors: np.ndarray  # float64 [B, 4]: brightness, contrast, saturation, hue (in turns)
    order: np.ndarray  # int64 [B, 4]: order of the four operations; 0 = brightness, ...
    grey: np.ndarray  # bool [B]
    blur: np.ndarray  # bool [B]
    sigma: np.ndarray  # float64 [B]: of the blur, in pixels of the output
    solarise: np.ndarray  # bool [B]
    gains: np.ndarray  # float64 [B, C]: factor of each channel
    noise: np.ndarray  # float64 [B]: standard deviation as a share of the range; 0: none
    noise_seed: np.ndarray  # int64 [B]

    @property
    def symmetry(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flips and turns as: reverse columns, reverse rows, then exchange rows and columns.

        Three times bool [B]. A quarter turn anticlockwise is reversed columns, exchanged; one
        clockwise is reversed rows, exchanged; half a turn reverses both.
        """
        columns = self.flip ^ ((self.turns == 1) | (self.turns == 2))
        rows = self.vertical_flip ^ ((self.turns == 2) | (self.turns == 3))
        return columns, rows, self.turns % 2 == 1

    def __getitem__(self, index: slice | npt.NDArray[np.integer]) -> Params:
        """The parameters of some of the samples."""
        fields = (f.name for f in dataclasses.fields(self))
        return Params(**{name: getattr(self, name)[index] for name in fields})


def draw(
    plan: ViewPlan,
    heights: npt.ArrayLike,
    widths: npt.ArrayLike,
    keys: npt.ArrayLike,
    seed: int,
    epoch: int,
) -> dict[tuple[str, int], Params]:
    """Draws the parameters of every view of a batch.

    Args:
        plan: the views.
        heights: heights of the images in pixels, int [B].
        widths: widths of the images in pixels, int [B].
        keys: index of each image in its source, int [B].
        seed: seed of the run.
        epoch: 0-based epoch.

    Returns:
        (name of the view, copy) -> `Params`.
    """
    h = np.asarray(heights, dtype=np.int64)
    w = np.asarray(widths, dtype=np.int64)
    slots = _CHANNELS + plan.channels
    return {
        (view.name, copy): _draw_one(
            view, copy, h, w, uniform(seed, epoch, keys, _stream(view.name, copy), slots)
        )
        for view in plan.views
        for copy in range(view.count)
    }


def _draw_one(view: View, copy: int, h: np.ndarray, w: np.ndarray, u: np.ndarray) -> Params:
    if view.scale is None:
        box, window = _full_box(h, w), _centre_window(h, w, view)
    else:
        box = _random_box(h, w, view.scale, view.ratio, u)
        full, zero = np.full_like(h, view.size), np.zeros_like(h)
        window = (full, full, zero, zero)
    strength = np.asarray(view.jitter)
    low = np.append(np.maximum(0.0, 1.0 - strength[:3]), -strength[3])
    high = np.append(1.0 + strength[:3], strength[3])
    sigma_low, sigma_high = view.blur_sigma
    noise_low, noise_high = view.noise_sigma
    gain_low, gain_high = max(0.0, 1.0 - view.channel_jitter), 1.0 + view.channel_jitter
    jittered = u[:, _JITTER] < view.jitter_p
    return Params(
        top=box[0],
        left=box[1],
        height=box[2],
        width=box[3],
        rows=window[0],
        columns=window[1],
        window_top=window[2],
        window_left=window[3],
        flip=u[:, _FLIP] < view.flip,
        vertical_flip=u[:, _VERTICAL_FLIP] < view.vertical_flip,
        turns=_turns(u[:, _TURNS], view.quarter_turns),
        jitter=jittered & bool(strength.any()),
        factors=low + (high - low) * u[:, _FACTORS],
        order=np.argsort(u[:, _ORDER], axis=1),
        grey=u[:, _GREY] < view.grey,
        blur=u[:, _BLUR] < view.blur_of(copy),
        sigma=sigma_low + (sigma_high - sigma_low) * u[:, _SIGMA],
        solarise=u[:, _SOLARISE] < view.solarise_of(copy),
        gains=np.where(
            jittered[:, None], gain_low + (gain_high - gain_low) * u[:, _CHANNELS:], 1.0
        ),
        noise=np.where(
            u[:, _NOISE] < view.noise,
            noise_low + (noise_high - noise_low) * u[:, _NOISE_SIGMA],
            0.0,
        ),
        noise_seed=(u[:, _NOISE_SEED] * 2**53).astype(np.int64),
    )


def _turns(u: np.ndarray, probability: float) -> np.ndarray:
    """Quarter turns 0 to 3, int64 [B]: 1, 2 and 3 have a third of the probability each."""
    share = u / max(probability, 1e-9)  # below 1 where the view is turned, and uniform there
    return np.where(share < 1, 1 + (3 * share).astype(np.int64), 0)


def _random_box(
    h: np.ndarray,
    w: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    u: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Top, left, height and width, int64 [B] each, as torchvision's RandomResizedCrop.get_params.

    Ten boxes are drawn, and the first one that fits the image is used.
    """
    low, high = np.log(ratio[0]), np.log(ratio[1])
    area = (h * w)[:, None] * (scale[0] + (scale[1] - scale[0]) * u[:, :_TRIES])
    aspect = np.exp(low + (high - low) * u[:, _TRIES : 2 * _TRIES])
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)  # rint rounds half to even, as round()
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (width > 0) & (width <= w[:, None]) & (height > 0) & (height <= h[:, None])
    first = fits.argmax(axis=1)[:, None]
    width = np.take_along_axis(width, first, axis=1)[:, 0]
    height = np.take_along_axis(height, first, axis=1)[:, 0]
    top = (u[:, _TOP] * (h - height + 1)).astype(np.int64)
    left = (u[:, _LEFT] * (w - width + 1)).astype(np.int64)
    # Fallback: the largest centred box within the range of aspect ratios, at least one pixel wide
    # and high (torchvision fails on very thin images).
    in_ratio = w / h
    wide, thin = in_ratio > ratio[1], in_ratio < ratio[0]
    fallback_w = np.maximum(1, np.where(wide, np.rint(h * ratio[1]), w)).astype(np.int64)
    fallback_h = np.maximum(1, np.where(thin, np.rint(w / ratio[0]), h)).astype(np.int64)
    any_fits = fits.any(axis=1)
    return (
        np.where(any_fits, top, (h - fallback_h) // 2),
        np.where(any_fits, left, (w - fallback_w) // 2),
        np.where(any_fits, height, fallback_h),
        np.where(any_fits, width, fallback_w),
    )


def _full_box(h: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.zeros_like(h), np.zeros_like(w), h, w


def _centre_window(h: np.ndarray, w: np.ndarray, view: View) -> tuple[np.ndarray, ...]:
    """Resized height and width, then top and left of the window, int64 [B] each.

    As torchvision's Resize(int) and CenterCrop.
    """
    short = view.resize or view.size
    rows = np.where(h <= w, short, short * h // w)
    columns = np.where(h <= w, short * w // h, short)
    top = np.rint((rows - view.size) / 2.0).astype(np.int64)
    left = np.rint((columns - view.size) / 2.0).astype(np.int64)
    return rows, columns, top, left


def _stream(name: str, copy: int) -> int:
    """Number of the random stream of a copy of a view.

    Made from the name, so that adding a view to a plan does not change the other views.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") << 16 | copy

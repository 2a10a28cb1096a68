"""All randomness of the views, as a stateless function of (seed, epoch, sample, view, copy).

A counter-based hash gives the uniform numbers, so a sample's views do not depend on the rest of
its batch, on the order of the batches or on the number of workers, and there is no state to save.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nolabel.nn.keyed_random import uniform
from nolabel.views.plan import View, ViewPlan

_TRIES = 10  # of torchvision's RandomResizedCrop before its fallback

# Which uniform number serves which decision. A decision keeps its slot for ever: adding one must
# append, or every recorded run would see other views.
_TOP, _LEFT = 2 * _TRIES, 2 * _TRIES + 1
_FLIP, _JITTER = 22, 23
_FACTORS = slice(24, 28)
_ORDER = slice(28, 32)
_GREY, _BLUR, _SIGMA, _SOLARISE = 32, 33, 34, 35
_SLOTS = 36


@dataclass(frozen=True, kw_only=True)
class Params:
    """What was drawn for one copy of one view: arrays over the batch, first axis B.

    The box is cut from the image and resized to `rows` x `columns`; of that, the window of
    size x size from (`window_top`, `window_left`) is the view. For random crops the window is
    everything; for evaluation the box is everything.
    """

    top: np.ndarray  # int64 [B], pixels of the source
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    rows: np.ndarray  # int64 [B], pixels of the output
    columns: np.ndarray
    window_top: np.ndarray
    window_left: np.ndarray
    flip: np.ndarray  # bool [B]
    jitter: np.ndarray  # bool [B]: is the jitter applied?
    factors: np.ndarray  # float64 [B, 4]: brightness, contrast, saturation, hue (turns)
    order: np.ndarray  # int64 [B, 4]: permutation; 0 = brightness, 1 = contrast, ...
    grey: np.ndarray  # bool [B]
    blur: np.ndarray  # bool [B]
    sigma: np.ndarray  # float64 [B], pixels of the output
    solarise: np.ndarray  # bool [B]

    def __getitem__(self, index: slice | npt.NDArray[np.integer]) -> Params:
        """The same parameters for some of the samples."""
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
        heights: heights of the images, integers [B], pixels.
        widths: widths of the images, integers [B], pixels.
        keys: keys of the samples, integers [B].
        seed: seed of the run.
        epoch: epoch.

    Returns:
        (name of the view, copy) -> `Params` with arrays over the batch.
    """
    h = np.asarray(heights, dtype=np.int64)
    w = np.asarray(widths, dtype=np.int64)
    return {
        (view.name, copy): _draw_one(
            view, copy, h, w, uniform(seed, epoch, keys, _stream(view.name, copy), _SLOTS)
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
        jitter=(u[:, _JITTER] < view.jitter_p) & bool(strength.any()),
        factors=low + (high - low) * u[:, _FACTORS],
        order=np.argsort(u[:, _ORDER], axis=1),
        grey=u[:, _GREY] < view.grey,
        blur=u[:, _BLUR] < view.blur_of(copy),
        sigma=sigma_low + (sigma_high - sigma_low) * u[:, _SIGMA],
        solarise=u[:, _SOLARISE] < view.solarise_of(copy),
    )


def _random_box(
    h: np.ndarray,
    w: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    u: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """torchvision's RandomResizedCrop.get_params: the first of ten tries that fits the image."""
    low, high = np.log(ratio[0]), np.log(ratio[1])
    area = (h * w)[:, None] * (scale[0] + (scale[1] - scale[0]) * u[:, :_TRIES])
    aspect = np.exp(low + (high - low) * u[:, _TRIES : 2 * _TRIES])
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)  # rint: halves to even, as round()
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (width > 0) & (width <= w[:, None]) & (height > 0) & (height <= h[:, None])
    first = fits.argmax(axis=1)[:, None]
    width = np.take_along_axis(width, first, axis=1)[:, 0]
    height = np.take_along_axis(height, first, axis=1)[:, 0]
    top = (u[:, _TOP] * (h - height + 1)).astype(np.int64)
    left = (u[:, _LEFT] * (w - width + 1)).astype(np.int64)
    # Fallback: the largest centred box within the range of aspects. At least a pixel, so that
    # a very thin image is not cut to nothing (torchvision would fail there).
    in_ratio = w / h
    wide, thin = in_ratio > ratio[1], in_ratio < ratio[0]
    fall_w = np.maximum(1, np.where(wide, np.rint(h * ratio[1]), w)).astype(np.int64)
    fall_h = np.maximum(1, np.where(thin, np.rint(w / ratio[0]), h)).astype(np.int64)
    ok = fits.any(axis=1)
    return (
        np.where(ok, top, (h - fall_h) // 2),
        np.where(ok, left, (w - fall_w) // 2),
        np.where(ok, height, fall_h),
        np.where(ok, width, fall_w),
    )


def _full_box(h: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.zeros_like(h), np.zeros_like(w), h, w


def _centre_window(h: np.ndarray, w: np.ndarray, view: View) -> tuple[np.ndarray, ...]:
    """torchvision's Resize(int) and CenterCrop: resized height, width, then top, left."""
    short = view.resize or view.size
    rows = np.where(h <= w, short, short * h // w)
    columns = np.where(h <= w, short * w // h, short)
    top = np.rint((rows - view.size) / 2.0).astype(np.int64)
    left = np.rint((columns - view.size) / 2.0).astype(np.int64)
    return rows, columns, top, left


def _stream(name: str, copy: int) -> int:
    """A number for a copy of a view. By name, so that a view added to a plan moves no other."""
    digest = hashlib.blake2b(name.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") << 16 | copy

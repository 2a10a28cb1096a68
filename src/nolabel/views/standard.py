"""View plans that several methods share: two views, and multi-crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nolabel.views.plan import View, ViewPlan


@dataclass(frozen=True, kw_only=True)
class DINOCrops:
    """Options of `multi_crop` as DINO, iBOT and DINOv2 have them; defaults are DINO's."""

    global_scale: tuple[float, float] = (0.4, 1.0)  # area of the two global crops, as share
    local_scale: tuple[float, float] = (0.05, 0.4)  # area of the local crops, as share
    local_crops: int = 8  # number of local crops; 0 = no multi-crop
    local_size: int = 96  # side of the local crops in pixels
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # b, c, s, hue; p 0.8
    grey: float = 0.2  # probability of a greyscale crop
    blur: tuple[float, float] = (1.0, 0.1)  # probability of blur, for each global crop
    local_blur: float = 0.5  # probability of blur of the local crops
    solarise: tuple[float, float] = (0.0, 0.2)  # of solarising, for each global crop
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels


def two_views(
    image_size: int,
    options: Any,
    *,
    blur: tuple[float, ...],
    solarise: tuple[float, ...] = (0.0,),
    jitter: tuple[float, float, float, float] | None = None,
    interpolation: str = "bicubic",
) -> ViewPlan:
    """Two views "view" of the full size, as in SimCLR, MoCo and BYOL.

    Args:
        image_size: side of the views in pixels.
        options: the method's, with the fields scale, jitter, grey and blur_sigma.
        blur, solarise: probabilities, one value for both views or one for each.
        jitter: used instead of `options.jitter`.
        interpolation: of the crops, "bicubic" or "bilinear".
    """
    o = options
    view = View(
        name="view", count=2, size=image_size, scale=o.scale, flip=0.5, jitter=jitter or o.jitter,
        jitter_p=0.8, grey=o.grey, blur=blur, solarise=solarise, blur_sigma=o.blur_sigma,
        interpolation=interpolation,
    )  # fmt: skip
    return ViewPlan(views=(view,))


def multi_crop(
    image_size: int,
    options: Any,
    *,
    blur: tuple[float, ...] | None = None,
    solarise: tuple[float, ...] | None = None,
    local_blur: float | None = None,
    interpolation: str = "bicubic",
) -> ViewPlan:
    """Two global crops "global" and several small ones "local", as in SwAV and DINO.

    Args:
        image_size: side of the global crops in pixels.
        options: the method's, with the fields global_scale, local_scale, local_crops (0 = none),
            local_size, jitter, grey and blur_sigma.
        blur, solarise: probabilities for each of the two global crops, or one for both; None: the
            options'.
        local_blur: probability of blur for the local crops; None: the options'.
        interpolation: of the crops, "bicubic" or "bilinear".
    """
    o = options
    blur = o.blur if blur is None else blur
    solarise = o.solarise if solarise is None else solarise
    local_blur = o.local_blur if local_blur is None else local_blur
    views = [
        View(name="global", count=2, size=image_size, scale=o.global_scale, flip=0.5,
             jitter=o.jitter, jitter_p=0.8, grey=o.grey, blur=blur, blur_sigma=o.blur_sigma,
             solarise=solarise, interpolation=interpolation)
    ]  # fmt: skip
    if o.local_crops:
        views.append(
            View(name="local", count=o.local_crops, size=o.local_size, scale=o.local_scale,
                 flip=0.5, jitter=o.jitter, jitter_p=0.8, grey=o.grey, blur=(local_blur,),
                 blur_sigma=o.blur_sigma, interpolation=interpolation)
        )  # fmt: skip
    return ViewPlan(views=tuple(views))

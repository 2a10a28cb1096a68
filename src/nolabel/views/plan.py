"""What the views of an image are, as data. The executors beside this file carry it out.

A `ViewPlan` lists the kinds of views a method wants (`View`), each with a number of copies; it
holds no tensors, so it can be printed, compared, saved and built without torch.
The order of operations is fixed, as in the papers: crop and resize, flip, colour jitter, grey,
blur, solarise, normalise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nolabel.errors import UsageError, unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
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
            resizes the shorter side and cuts the centre instead (evaluation).
        ratio: smallest and largest width / height of the random crop; not used without `scale`.
        interpolation: "bicubic" or "bilinear"; both antialiased.
        flip: probability of a left-right flip.
        jitter: strength of brightness, contrast, saturation and hue. The first three factors
            are uniform in [max(0, 1 - strength), 1 + strength], the shift of hue in
            [-strength, strength] turns of the colour circle. Their order is random.
        jitter_p: probability of the jitter.
        grey: probability of removing colour.
        blur: probability of a Gaussian blur, one value per copy, or one for all copies.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of the output.
        solarise: probability of inverting the bright pixels (from 128 of 255), one value per
            copy, or one for all copies.
        resize: without `scale`: length of the shorter side before the centre is cut; None means
            the same as `size`.
    """

    name: str
    count: int = 1
    size: int
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.8
    grey: float = 0.0
    blur: tuple[float, ...] = (0.0,)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: tuple[float, ...] = (0.0,)
    resize: int | None = None

    def __post_init__(self) -> None:
        for field in ("scale", "ratio", "jitter", "blur", "blur_sigma", "solarise"):
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
        for field in ("flip", "jitter_p", "grey"):
            if not 0 <= getattr(self, field) <= 1:
                raise self._invalid(field, "a probability in 0..1")
        if len(self.jitter) != 4 or not all(0 <= v < math.inf for v in self.jitter):
            raise self._invalid(
                "jitter", "four strengths >= 0: brightness, contrast, saturation, hue"
            )
        if self.jitter[3] > 0.5:
            raise self._invalid("jitter", "at most 0.5 in its last place (hue, half a turn)")
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
        """Half width of the blur's kernel: 3 of its largest sigma, within the reflected border."""
        return min(math.ceil(3 * self.blur_sigma[1]), self.size - 1)

    def describe(self) -> str:
        """One line for people; says only what is switched on."""
        copies = f"{self.count} x " if self.count > 1 else ""
        parts = [f"{self.name}: {copies}{self.size} px"]
        if self.scale is None:
            parts.append(f"centre of shorter side {self.resize or self.size}")
        else:
            parts.append(f"crop {_span(self.scale)} of the area, aspect {_span(self.ratio)}")
        parts.append(self.interpolation)
        if self.flip:
            parts.append(f"flip p={self.flip:g}")
        if self.jitter_p and any(self.jitter):
            names = ("brightness", "contrast", "saturation", "hue")
            on = [f"{n} {v:g}" for n, v in zip(names, self.jitter, strict=True) if v]
            parts.append(f"jitter {' '.join(on)} p={self.jitter_p:g}")
        if self.grey:
            parts.append(f"grey p={self.grey:g}")
        if any(self.blur):
            parts.append(f"blur sigma {_span(self.blur_sigma)} px p={_per_copy(self.blur)}")
        if any(self.solarise):
            parts.append(f"solarise p={_per_copy(self.solarise)}")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """All views of an image, and the normalisation they share.

    Attributes:
        views: the kinds of views; their names are unique.
        mean: mean of each channel (red, green, blue), with pixels in 0..1.
        std: standard deviation of each channel. Output is (pixel - mean) / std. With another
            number of channels than three there is no colour: saturation, hue and grey must be 0,
            and contrast blends with the mean of all channels.
    """

    views: tuple[View, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if not self.views:
            raise UsageError("A view plan needs at least one view, but got none.")
        for view in self.views:
            if not isinstance(view, View):
                raise UsageError(f"A view plan is made of View, but got {type(view).__name__}.")
        names = [view.name for view in self.views]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(
                f"Two views share the name {twice[0]!r}; give each its own, or use `count` for "
                "copies of one view."
            )
        for field in ("mean", "std"):
            value = tuple(float(v) for v in getattr(self, field))
            object.__setattr__(self, field, value)
            if not value or not all(math.isfinite(v) for v in value):
                raise UsageError(f"{field} is {value!r}, but must be a finite number a channel.")
        if len(self.mean) != len(self.std):
            raise UsageError(
                f"mean has {len(self.mean)} channels, but std has {len(self.std)}; they must agree."
            )
        if min(self.std) <= 0:
            raise UsageError(f"std is {self.std!r}, but must be positive in every channel.")
        for view in self.views if self.channels != 3 else ():
            if view.grey or view.jitter[2] or view.jitter[3]:
                raise UsageError(
                    f"View {view.name!r} changes colour (saturation, hue, grey), which images of "
                    f"{self.channels} channels have not. `with_statistics` leaves that out."
                )

    @property
    def channels(self) -> int:
        """Channels of the images, C."""
        return len(self.mean)

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> ViewPlan:
        """The plan for images of these statistics; with other than three, without colour."""
        views = self.views
        if len(mean) != 3:
            views = tuple(
                replace(v, grey=0.0, jitter=(v.jitter[0], v.jitter[1], 0.0, 0.0)) for v in views
            )
        return ViewPlan(views=views, mean=tuple(mean), std=tuple(std))

    @property
    def count(self) -> int:
        """Views of one image, over all kinds and copies."""
        return sum(view.count for view in self.views)

    @property
    def sufficient_pixels(self) -> int | None:
        """Pixels of a source image that lose nothing that shows in the views; None: all of them.

        With so many, the smallest crop of every view is at least twice as long on its shorter
        side as the view. Images decoded at a reduced scale down to this limit give views within
        0.8 levels of 255 on average (1 % of the values beyond 5) of those of the whole image,
        measured for the smallest crop, on photographs; twice as large a crop halves that.
        """
        need = 0.0
        for view in self.views:
            if view.scale is None:
                return None
            aspect = max(view.ratio[1], 1 / view.ratio[0])
            need = max(need, (2 * view.size) ** 2 * aspect / view.scale[0])
        return math.ceil(need)

    def describe(self) -> list[str]:
        """Lines for people, as `--dry-run` prints them: one per view, and the normalisation."""
        lines = [view.describe() for view in self.views]
        mean, std = (" ".join(f"{v:g}" for v in x) for x in (self.mean, self.std))
        return [*lines, f"normalise: mean {mean}, std {std}"]


def two_views(
    image_size: int,
    options: Any,
    *,
    blur: tuple[float, ...],
    solarise: tuple[float, ...] = (0.0,),
    jitter: tuple[float, float, float, float] | None = None,
) -> ViewPlan:
    """Two views "view" of the whole size, after SimCLR, MoCo and BYOL.

    Args:
        image_size: side of the views in pixels.
        options: a method's, with the fields scale, jitter, grey and blur_sigma.
        blur, solarise: probabilities, one for both views or one for each.
        jitter: in place of the options'.
    """
    o = options
    view = View(
        name="view", count=2, size=image_size, scale=o.scale, flip=0.5, jitter=jitter or o.jitter,
        jitter_p=0.8, grey=o.grey, blur=blur, solarise=solarise, blur_sigma=o.blur_sigma,
    )  # fmt: skip
    return ViewPlan(views=(view,))


def multi_crop(
    image_size: int,
    options: Any,
    *,
    blur: tuple[float, ...] = (1.0, 0.1),
    solarise: tuple[float, ...] = (0.0, 0.2),
    local_blur: float = 0.5,
) -> ViewPlan:
    """Two global crops "global" and several small ones "local", after SwAV and DINO.

    Args:
        image_size: side of the global crops in pixels.
        options: a method's, with the fields global_scale, local_scale, local_crops (0 = none),
            local_size, jitter, grey and blur_sigma.
        blur, solarise: probabilities for each of the two global crops.
        local_blur: probability for the local ones.
    """
    o = options
    views = [
        View(name="global", count=2, size=image_size, scale=o.global_scale, flip=0.5,
             jitter=o.jitter, jitter_p=0.8, grey=o.grey, blur=blur, blur_sigma=o.blur_sigma,
             solarise=solarise)
    ]  # fmt: skip
    if o.local_crops:
        views.append(
            View(name="local", count=o.local_crops, size=o.local_size, scale=o.local_scale,
                 flip=0.5, jitter=o.jitter, jitter_p=0.8, grey=o.grey, blur=(local_blur,),
                 blur_sigma=o.blur_sigma)
        )  # fmt: skip
    return ViewPlan(views=tuple(views))


def evaluation_plan(
    size: int,
    resize: int | None = None,
    *,
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> ViewPlan:
    """One deterministic view "image": shorter side to `resize` (default `size`), centre cut."""
    view = View(
        name="image", size=size, scale=None, resize=resize, interpolation=interpolation, flip=0.0
    )
    return ViewPlan(views=(view,), mean=mean, std=std)


def _span(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3g}-{pair[1]:.3g}"


def _per_copy(values: tuple[float, ...]) -> str:
    return "/".join(f"{v:g}" for v in values)

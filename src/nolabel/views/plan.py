"""All views of an image, as data. The executors beside this file compute them.

A `ViewPlan` lists the kinds of views that a method wants (`View`), each with a number of copies. It
holds no tensors, so it can be printed, compared, saved and built without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nolabel.errors import UsageError
from nolabel.views.view import View

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "View", "ViewPlan"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
                raise UsageError(
                    f"{field} is {value!r}, but must be one finite number per channel."
                )
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
                    f"{self.channels} channels do not have. `with_statistics` removes that."
                )

    @property
    def channels(self) -> int:
        """Channels of the images, C."""
        return len(self.mean)

    def with_statistics(self, mean: Sequence[float], std: Sequence[float]) -> ViewPlan:
        """The plan with this mean and std; unless they have three channels, without colour."""
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
        """Pixels (height x width) of an image that suffice for the views; None: full size.

        With so many, the shorter side of the smallest crop of every view is at least twice the
        view's. Images decoded at a reduced scale down to this limit give views within
        0.8 levels of 255 on average (1 % of the values beyond 5) of those of the full-size
        image, measured for the smallest crop, on photographs; for a crop twice as large, half that.
        """
        need = 0.0
        for view in self.views:
            if view.scale is None:
                return None
            aspect = max(view.ratio[1], 1 / view.ratio[0])
            need = max(need, (2 * view.size) ** 2 * aspect / view.scale[0])
        return math.ceil(need)

    def describe(self) -> list[str]:
        """Lines of text, as `--dry-run` prints them: one per view, and the normalisation."""
        lines = [view.describe() for view in self.views]
        mean, std = (" ".join(f"{v:g}" for v in x) for x in (self.mean, self.std))
        return [*lines, f"normalise: mean {mean}, std {std}"]

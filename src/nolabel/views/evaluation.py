"""The view for evaluation."""

from __future__ import annotations

from nolabel.views.plan import IMAGENET_MEAN, IMAGENET_STD, View, ViewPlan


def evaluation_plan(
    size: int,
    resize: int | None = None,
    *,
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> ViewPlan:
    """One deterministic view "image": shorter side to `resize` (default `size`), centre crop."""
    view = View(
        name="image", size=size, scale=None, resize=resize, interpolation=interpolation, flip=0.0
    )
    return ViewPlan(views=(view,), mean=mean, std=std)

"""Fields of all views of a plan at once: flips and turns, colours, blur, noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nolabel.views.plan import ViewPlan
from nolabel.views.view import View

ORIENTATION = ("flip", "vertical_flip", "quarter_turns")  # of `View`
# Options of a run, or of a method that has an option of this name; those of single views are not.
SHARED = (
    *ORIENTATION, "jitter", "channel_jitter", "jitter_p", "grey", "blur", "blur_sigma", "solarise",
    "noise", "noise_sigma",
)  # fmt: skip
PER_COPY = ("blur", "solarise")  # a tuple in `View`, one number for all copies here


def with_fields(plan: ViewPlan, **values: Any) -> ViewPlan:
    """The plan with these values of `SHARED` in every view; None leaves each view's own."""
    new: dict[str, Any] = {}
    for name, value in values.items():
        if value is not None:
            one = name in PER_COPY and isinstance(value, (int, float))
            new[name] = (value,) if one else value
    if not new:
        return plan
    return replace(plan, views=tuple(replace(view, **new) for view in plan.views))


def orientation(plan: ViewPlan) -> dict[str, Any]:
    """The probability of each of `ORIENTATION` that all views share; None where they differ."""
    return {name: _shared(plan.views, name) for name in ORIENTATION}


def _shared(views: tuple[View, ...], name: str) -> float | None:
    values = {float(getattr(view, name)) for view in views}
    return values.pop() if len(values) == 1 else None

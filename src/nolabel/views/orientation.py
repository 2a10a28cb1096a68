"""Flips and quarter turns of all views of a plan at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nolabel.views.plan import ViewPlan

FIELDS = ("flip", "vertical_flip", "quarter_turns")  # of `View`


def with_orientation(
    plan: ViewPlan,
    flip: float | None = None,
    vertical_flip: float | None = None,
    quarter_turns: float | None = None,
) -> ViewPlan:
    """The plan with these probabilities in every view; None leaves each view's own."""
    values = zip(FIELDS, (flip, vertical_flip, quarter_turns), strict=True)
    new: dict[str, Any] = {k: v for k, v in values if v is not None}
    return replace(plan, views=tuple(replace(view, **new) for view in plan.views))


def orientation(plan: ViewPlan) -> dict[str, Any]:
    """The probability of each of `FIELDS` that all views share; None where they differ."""
    out: dict[str, Any] = {}
    for name in FIELDS:
        values = {float(getattr(view, name)) for view in plan.views}
        out[name] = values.pop() if len(values) == 1 else None
    return out

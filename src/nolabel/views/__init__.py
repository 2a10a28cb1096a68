"""Views: plans as data (`plan`), random parameters (`draw`), and two executors that make them.

The plan is imported at once and needs no torch; the rest is imported where it is first used.
`nolabel.views.draw` is the module; its function is `nolabel.views.draw.draw`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nolabel.views.evaluation import evaluation_plan
from nolabel.views.plan import IMAGENET_MEAN, IMAGENET_STD, View, ViewPlan

if TYPE_CHECKING:
    from nolabel.views.draw import Params, uniform
    from nolabel.views.fast import FastViews
    from nolabel.views.reference import ReferenceViews

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FastViews",
    "Params",
    "ReferenceViews",
    "View",
    "ViewPlan",
    "evaluation_plan",
    "uniform",
]

_LAZY = {"FastViews": "fast", "Params": "draw", "ReferenceViews": "reference", "uniform": "draw"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

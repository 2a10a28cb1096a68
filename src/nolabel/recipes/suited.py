"""Fits the automatic recipes' views to what was measured on the images (`Operations`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from nolabel.methods.base import Recipe
from nolabel.views.plan import ViewPlan
from nolabel.views.suitability import JITTER, USUAL, Operations

MORE_INTENSITY = 1.5  # times the brightness and contrast, for images without colour
MOST_INTENSITY = 0.8  # the strongest of the recipes for photographs
CHANNELS = 0.2  # strength of the jitter of each channel by itself, for other than 1 or 3 channels
# `Operations.colour_matches` up to which colour is no shortcut, and from which it is one.
SHORTCUT = (0.6, 0.9)
FLIP, TURNS = 0.5, 0.75  # all eight orientations are equally likely
MOST_DETECTED_FLIP = 0.85  # accuracy above which mirrored images are no images of the set

TURNED = {"vertical_flip": "vertical flips", "quarter_turns": "quarter turns"}

Jitter = tuple[float, float, float, float]


def suited(recipe: Recipe, operations: Operations | None) -> Recipe:
    """The recipe with colour, blur and solarising that suit the images; None: as it is.

    The options are known by their names, which all methods that change colours share (`CHANGES`),
    and by how many numbers they hold: others are a user's own and mean something else.
    """
    if operations is None:
        return recipe
    own = {f.name: getattr(recipe.options, f.name) for f in dataclasses.fields(recipe.options)}
    new = {
        name: change(own[name], operations)
        for name, (change, counts) in CHANGES.items()
        if _numbers(own.get(name)) in counts
    }
    return dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, **new))


def suited_jitter(jitter: Jitter, operations: Operations | None) -> Jitter:
    """Strengths of brightness, contrast, saturation and hue that suit the images.

    Images without colour get more brightness and contrast in place of hue and saturation.
    """
    if operations is None:
        return jitter
    values = dict(zip(JITTER, jitter, strict=True))
    if not operations.colourful:
        for name in ("brightness", "contrast"):
            more = min(MORE_INTENSITY * values[name], MOST_INTENSITY)
            values[name] = round(max(more, values[name]), 3)
        values |= {"saturation": 0.0, "hue": 0.0}
    for name, share in operations.strength.items():
        if name in values and share < 1:
            values[name] = round(min(values[name], USUAL[name] * share), 3)
    b, c, s, h = (values[name] for name in JITTER)
    return b, c, s, h


def _jitter(value: Jitter | float, operations: Operations) -> Jitter | float:
    """`suited_jitter`, also of BEiT's one strength for brightness, contrast and saturation."""
    if isinstance(value, tuple):
        return suited_jitter(value, operations)
    b, c, s, _ = suited_jitter((value, value, value, 0.0), operations)
    return min(b, c, s) if operations.colourful else min(b, c)


def suited_grey(grey: float, operations: Operations | None) -> float:
    """Probability of removing colour that suits the images."""
    if operations is None:
        return grey
    return grey * operations.strength.get("grey", 1.0) if operations.colourful else 0.0


def _switched(name: str) -> Callable[[Any, Operations], Any]:
    """Probabilities, one or several, times the strength that suits."""

    def change(value: Any, operations: Operations) -> Any:
        keep = 1.0 if operations.strength.get(name, 1.0) > 0 else 0.0
        return tuple(keep * v for v in value) if isinstance(value, tuple) else keep * value

    return change


def _sigma(value: tuple[float, float], operations: Operations) -> tuple[float, float]:
    share = operations.strength.get("blur", 1.0)
    return (value[0], max(value[1] * share, value[0])) if 0 < share < 1 else value


Change = Callable[[Any, Operations], Any]
# Option -> what suits, and of how many numbers it is.
CHANGES: dict[str, tuple[Change, tuple[int, ...]]] = {
    "jitter": (_jitter, (1, 4)),
    "grey": (suited_grey, (1,)),
    "blur": (_switched("blur"), (1, 2)),
    "local_blur": (_switched("blur"), (1,)),
    "blur_sigma": (_sigma, (2,)),
    "solarise": (_switched("solarise"), (1, 2)),
}


def _numbers(value: object) -> int:
    """How many numbers an option holds; 0 if it holds something else."""
    values = value if isinstance(value, tuple) else (value,)
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return len(values) if numbers else 0


def suited_settings(plan: ViewPlan, channels: int, operations: Operations) -> dict[str, float]:
    """Settings of every view that suit the images; those that stay as in the plan are left out.

    Args:
        plan: of the method.
        channels: of the images.
        operations: of the images.
    """
    out: dict[str, float] = {}
    if operations.detected["flip"] > MOST_DETECTED_FLIP and any(v.flip for v in plan.views):
        out["flip"] = 0.0
    if operations.tolerated("vertical_flip"):
        out["vertical_flip"] = FLIP
    if operations.tolerated("quarter_turns"):
        out["quarter_turns"] = TURNS
    if channels not in (1, 3) and any(any(v.jitter) for v in plan.views):
        out["channel_jitter"] = CHANNELS
    return out


def reasons(before: ViewPlan, after: ViewPlan, operations: Operations) -> tuple[str, ...]:
    """What was changed in the views and why, in words; empty if nothing was.

    Args:
        before: the plan of the recipe for any images.
        after: the plan that suits the images.
        operations: of the images.
    """
    a, b = before.views[0], after.views[0]
    out = []
    if not operations.colourful and (a.jitter != b.jitter or a.grey != b.grey):
        out.append("grey images, so brightness and contrast in place of hue")
    changed = {name for name, x, y in zip(JITTER, a.jitter, b.jitter, strict=True) if x != y}
    changed |= {
        name for name in ("grey", "blur", "solarise") if getattr(a, name) != getattr(b, name)
    }
    if any(a.blur) and a.blur_sigma != b.blur_sigma:
        changed.add("blur")
    less_colour = b.jitter[3] < a.jitter[3] or b.grey < a.grey
    if operations.colourful and less_colour and operations.colour_matches < SHORTCUT[1]:
        found = f"{operations.colour_matches:.0%} of crops find their image by colour"
        out.append(f"colour is no shortcut ({found}), so weaker changes of it")
    for name, strength in operations.strength.items():
        if name in changed and strength < 1:
            what = name.replace("solarise", "solarising")
            less = "less of it" if strength else "none"
            out.append(f"{what} makes images alike ({operations.moved[name]:.2f}), so {less}")
    turned = [words for field, words in TURNED.items() if getattr(a, field) != getattr(b, field)]
    if turned:
        out.append(f"no up, so {' and '.join(turned)}")
    if a.flip and not b.flip:
        detected = operations.detected["flip"]
        out.append(f"mirrored images are detected with an accuracy of {detected:.0%}, so no flips")
    if b.channel_jitter and not a.channel_jitter:
        out.append("other than 1 or 3 channels, so each is scaled by itself")
    return tuple(out)

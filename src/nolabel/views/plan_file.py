"""A plan of the views as a file: the views of a method, with other values.

    views:
    - name: global
      scale: [0.5, 1.0]
      blur: [0.0, 0.0]
    - name: local
      noise: 0.5

Each view is named as the method names it. What is left out stays as in the method's plan; the
number of copies and the size are the method's. In a run's config.yaml the whole plan is one line of
JSON, so that a resumed run needs no file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nolabel._files.yaml import read_yaml
from nolabel.errors import UsageError, did_you_mean
from nolabel.views.plan import ViewPlan
from nolabel.views.view import View

FIXED = ("count", "size")  # the method's step and network depend on them
HINT = "`nolabel show views` writes the plan of a run as such a file (views.yaml)."


def to_yaml(plan: ViewPlan) -> str:
    """The views of a plan as the text of a file."""
    lines = ["views:"]
    for view in plan.views:
        for i, (name, value) in enumerate(_values(view).items()):
            text = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
            lines.append(f"{'-' if i == 0 else ' '} {name}: {text}")
    return "\n".join(lines) + "\n"


def to_line(plan: ViewPlan) -> str:
    """The views of a plan as one line, for config.yaml."""
    return json.dumps({"views": [_values(view) for view in plan.views]})


def read_views(source: str, own: ViewPlan) -> ViewPlan:
    """The plan of a file, or of a line of `to_line`.

    Args:
        source: a path, or the line.
        own: the method's plan, whose views are changed.

    Raises:
        UsageError: no such file, a wrong key or value, or views that are not the method's.
    """
    line = source.lstrip().startswith("{")
    where = "the views of the configuration" if line else str(Path(source))
    raw = _from_line(source) if line else read_yaml(source)
    if set(raw) != {"views"} or not isinstance(raw["views"], list) or not raw["views"]:
        wrong = next((str(k) for k in raw if k != "views"), "")
        nearest = did_you_mean(wrong, ("views",)) if wrong else ""
        raise UsageError(f"{where} must hold one key, views, with a list.{nearest} {HINT}")
    named: dict[str, View] = {}
    views = {view.name: view for view in own.views}
    for entry in raw["views"]:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if name not in views or name in named:
            nearest = did_you_mean(str(name), views)
            raise UsageError(
                f"A view of {where} is named {name!r}, but the method has one each of: "
                f"{', '.join(views)}.{nearest}"
            )
        named[name] = _changed(views[name], entry, where)
    if missing := [name for name in views if name not in named]:
        raise UsageError(f"{where} has no view {missing[0]!r}, which the method needs. {HINT}")
    return dataclasses.replace(own, views=tuple(named[name] for name in views))


def _from_line(line: str) -> dict[str, Any]:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The views of the configuration are not valid: {error}") from None
    return raw if isinstance(raw, dict) else {}


def _values(view: View) -> dict[str, Any]:
    """The fields of a view as built-in types; None where a field is not used."""
    values = {f.name: getattr(view, f.name) for f in dataclasses.fields(view)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _changed(view: View, entry: Mapping[str, Any], where: str) -> View:
    names = [f.name for f in dataclasses.fields(View)]
    new: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in names:
            nearest = did_you_mean(str(key), names)
            raise UsageError(f"Unknown key {key!r} of view {view.name!r} in {where}.{nearest}")
        if key in FIXED and value != getattr(view, key):
            raise UsageError(
                f"{key} of view {view.name!r} in {where} is {value!r}, but the method has "
                f"{getattr(view, key)}. Change it by the method's options or --image-size."
            )
        if not _fits(getattr(view, key), value, key):
            raise UsageError(
                f"{key} of view {view.name!r} in {where} is {value!r}, which is of a wrong type; "
                f"now it is {getattr(view, key)!r}."
            )
        new[key] = tuple(value) if isinstance(value, list) else value
    if "scale" in new and new["scale"] is not None and "resize" not in new:
        new["resize"] = None
    return dataclasses.replace(view, **new)


def _fits(own: object, value: object, key: str) -> bool:
    """Whether a value is of the type of the field, which has a value of the method's."""
    if value is None:
        return key in ("scale", "resize")
    if key == "resize":
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(own, tuple) or key == "scale":
        return isinstance(value, list) and all(map(_is_number, value))
    return isinstance(value, str) if isinstance(own, str) else _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

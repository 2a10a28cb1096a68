"""Published names of classes and templates, as the package open_clip brings them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nolabel.errors import DataError, UsageError

# Radford et al. 2021: the ensemble of 80 for ImageNet, and the seven of it that do most.
PRESETS = {"imagenet80": "OPENAI_IMAGENET_TEMPLATES", "imagenet7": "SIMPLE_IMAGENET_TEMPLATES"}


def templates_of(given: Sequence[str]) -> tuple[str, ...]:
    """Templates with one {} each; the name of a preset stands for all of its own.

    Raises:
        UsageError: a preset without the extra `clip`.
    """
    out: list[str] = []
    for item in given:
        if item in PRESETS:
            published = vars(_published(f"The templates {item}"))[PRESETS[item]]
            out += [template("{}") for template in published]
        else:
            out.append(item)
    return tuple(out)


def names_of(given: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What the classes are called in the texts.

    Args:
        given: "" takes the classes' own names; "imagenet" the curated names of ImageNet's 1,000
            classes in their order; else a file with a name a line, in the order of the classes.
        classes: the data's names.

    Raises:
        UsageError: no such file, or `imagenet` without the extra `clip`.
        DataError: another number of names than of classes.
    """
    if not given:
        return classes
    if given == "imagenet":
        names = tuple(_published("The names imagenet").IMAGENET_CLASSNAMES)
    else:
        file = Path(given)
        if not file.is_file():
            raise UsageError(f"No file {given!r} with names. Give one, or imagenet.")
        lines = file.read_text(encoding="utf-8").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != len(classes):
        raise DataError(
            f"{given!r} has {len(names)} names, the test set {len(classes)} classes (first: "
            f"{', '.join(classes[:3])}). One name a class is needed, in the same order."
        )
    return names


def _published(what: str) -> Any:
    try:
        from open_clip import zero_shot_metadata
    except ImportError:
        raise UsageError(f"{what} come with open_clip: pip install 'nolabel[clip]'.") from None
    return zero_shot_metadata

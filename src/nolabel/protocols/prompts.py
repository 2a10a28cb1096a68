"""Class names and prompt templates: the user's, or the published ones in open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nolabel.errors import DataError, UsageError

# Radford et al. 2021: the 80 templates for ImageNet, and the seven most useful of them.
PRESETS = {"imagenet80": "OPENAI_IMAGENET_TEMPLATES", "imagenet7": "SIMPLE_IMAGENET_TEMPLATES"}


def templates_of(given: Sequence[str]) -> tuple[str, ...]:
    """Expands names of published sets of templates.

    Args:
        given: templates with one {} each, or names in `PRESETS`.

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
    """Names of the classes for the prompts.

    Args:
        given: "" takes the data's names; "imagenet" the curated names of ImageNet's 1,000 classes
            in their order; otherwise a file with one name per line, in the order of the classes.
        classes: the data's names of the classes.

    Raises:
        UsageError: no such file, or `imagenet` without the extra `clip`.
        DataError: the number of names differs from that of classes.
    """
    if not given:
        return classes
    if given == "imagenet":
        names = tuple(_published("The names imagenet").IMAGENET_CLASSNAMES)
    else:
        path = Path(given)
        if not path.is_file():
            raise UsageError(
                f"No file {given!r}. names is a file with one class name per line, or imagenet."
            )
        lines = path.read_text(encoding="utf-8").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != len(classes):
        raise DataError(
            f"{given!r} has {len(names)} names, the test set {len(classes)} classes (first: "
            f"{', '.join(classes[:3])}). Give one name per class, in the same order."
        )
    return names


def _published(what: str) -> Any:
    try:
        from open_clip import zero_shot_metadata
    except ImportError:
        raise UsageError(f"{what} come with open_clip: pip install 'nolabel[clip]'.") from None
    return zero_shot_metadata

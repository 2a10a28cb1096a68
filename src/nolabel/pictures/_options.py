"""The options of a picture, declared once: in the annotations of its function.

A keyword whose annotation carries `Help` is an option. Python callers pass it by keyword,
`nolabel show WHAT` makes a flag of it, and `--help` prints its type, default and text:

    def dream(encoder, *, steps: Annotated[int, Help("steps of the optimisation")] = 256): ...
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple


@dataclass(frozen=True)
class Help:
    """Marks a keyword as an option of its picture.

    Attributes:
        text: its text in `nolabel show WHAT --help`.
    """

    text: str


class Option(NamedTuple):
    """An option of a picture, as its function declares it."""

    name: str
    kind: type
    default: object
    help: str


def read_options(function: Callable[..., object]) -> tuple[Option, ...]:
    """The options of a picture's function: its keywords that are annotated with `Help`."""
    hints = typing.get_type_hints(function, include_extras=True)
    options = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name)
        if typing.get_origin(hint) is not Annotated:
            continue
        kind, *metadata = typing.get_args(hint)
        texts = [m.text for m in metadata if isinstance(m, Help)]
        if texts:
            options.append(Option(parameter.name, kind, parameter.default, texts[0]))
    return tuple(options)


# Options that several pictures share.
Layer = Annotated[int, Help("which layer; -1 is the last")]
Facet = Annotated[
    str, Help("key, query, value or token; auto is key, or token of a network without keys")
]
Stride = Annotated[
    int, Help("pixels between neighbouring patches; 0 is the patch size (no overlap)")
]
Bins = Annotated[
    bool, Help("whether each patch is compared together with its neighbourhood (log bins)")
]
Templates = Annotated[tuple[str, ...], Help("prompts with one {} for the class or word")]

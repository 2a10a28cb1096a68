"""What the protocols' option classes share: single values become tuples, bounds are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from nolabel.errors import UsageError

T = TypeVar("T")


def build(kind: Callable[..., T], given: Mapping[str, object]) -> T:
    """The options of a class `kind`, with some fields given.

    Raises:
        UsageError: a value that the class refuses.
    """
    return kind(**given)


def as_tuples(options: object, *names: str) -> None:
    """Makes tuples of fields of a frozen dataclass; a single text or number is a tuple of one."""
    for name in names:
        value = vars(options)[name]
        single = isinstance(value, str | int | float)
        object.__setattr__(options, name, (value,) if single else tuple(value))


def at_least(options: object, **bounds: float) -> None:
    """Checks lower bounds of the fields of a dataclass; a field that is None has no bound.

    Args:
        options: the dataclass.
        bounds: name of a field -> its least value.

    Raises:
        UsageError: a value below its bound.
    """
    for name, bound in bounds.items():
        value = vars(options)[name]
        if value is not None and not value >= bound:
            raise UsageError(f"{name} must be at least {bound:g}, got {value}.")

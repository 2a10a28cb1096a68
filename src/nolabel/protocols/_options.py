"""Helpers of the protocols' option classes: checks of bounds, single values as tuples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from nolabel.errors import UsageError

T = TypeVar("T")


def build_options(cls: Callable[..., T], values: Mapping[str, object]) -> T:
    """Makes the options of class `cls`; fields without a value have their default.

    Args:
        cls: the class of options.
        values: field -> value.

    Raises:
        UsageError: a value that the class refuses.
    """
    return cls(**values)


def as_tuples(options: object, *names: str) -> None:
    """Makes fields of a frozen dataclass tuples; a single value becomes a tuple of one."""
    for name in names:
        value = vars(options)[name]
        single = isinstance(value, str | int | float)
        object.__setattr__(options, name, (value,) if single else tuple(value))


def at_least(options: object, **bounds: float) -> None:
    """Checks lower bounds of fields of a dataclass; None is allowed.

    Args:
        options: the dataclass.
        bounds: field -> lowest value allowed.

    Raises:
        UsageError: a value below its bound.
    """
    for name, bound in bounds.items():
        value = vars(options)[name]
        if value is not None and not value >= bound:
            raise UsageError(f"{name} must be at least {bound:g}, got {value}.")

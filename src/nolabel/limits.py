"""Bounds of options, written in their types and checked before any work.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        temperature: Positive = 0.1

`check` compares the values of such a class with its types. Every number must be finite.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from nolabel.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Which numbers an option may take."""

    low: float = -math.inf  # the least
    above: float = -math.inf  # smaller than each
    high: float = math.inf  # the largest
    below: float = math.inf  # larger than each

    def allows(self, value: float) -> bool:
        """Whether a number lies within; NaN never does."""
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        if self.high < math.inf and self.above > -math.inf:
            return f"must be above {self.above:g} and at most {self.high:g}"
        if self.below < math.inf:
            return f"must be at least {self.low:g} and below {self.below:g}"
        if self.high < math.inf:
            return f"must lie between {self.low:g} and {self.high:g}"
        if self.above > -math.inf:
            return f"must be above {self.above:g}"
        return f"must be at least {self.low:g}"


Positive = Annotated[float, Bound(above=0)]
NotNegative = Annotated[float, Bound(low=0)]
Share = Annotated[float, Bound(low=0, high=1)]  # also a probability, or a momentum
BelowOne = Annotated[float, Bound(low=0, below=1)]
Factor = Annotated[float, Bound(above=0, high=1)]
Count = Annotated[int, Bound(above=0)]
Several = Annotated[int, Bound(low=2)]  # codes or classes, which one alone would not distinguish
Whole = Annotated[int, Bound(low=0)]  # 0: none, or all
Side = Annotated[int, Bound(low=8)]  # of images to learn from, pixels


def check(values: object, prefix: str = "--") -> None:
    """Checks the numbers of an options class.

    Args:
        values: an instance; fields without a bound must be finite. Of options that are no dataclass
            nothing is known.
        prefix: of the names in the message, as on a command line.

    Raises:
        UsageError: a number is not allowed.
    """
    if isinstance(values, type) or not is_dataclass(values):
        return
    hints = typing.get_type_hints(type(values), include_extras=True)
    for f in fields(values):
        name = prefix + f.name.replace("_", "-")
        _check(hints[f.name], getattr(values, f.name), name)


def check_finite(values: DataclassInstance, prefix: str = "--") -> None:
    """Checks that the numbers of a dataclass, and of dataclasses in it, are finite.

    Raises:
        UsageError: a number is infinite or NaN.
    """
    for f in fields(values):
        value = getattr(values, f.name)
        if hasattr(type(value), "__dataclass_fields__"):
            check_finite(value, prefix)
        else:
            _check(Any, value, prefix + f.name.replace("_", "-"))


def positive(name: str, value: float | None) -> None:
    """Checks that a number is above 0, if it is given.

    Raises:
        UsageError: it is not.
    """
    if value is not None:
        _check(Positive, value, name)


def _check(hint: Any, value: object, name: str) -> None:
    if isinstance(value, tuple):
        inner = [a for a in _branches(hint) if typing.get_origin(a) is tuple]
        parts = typing.get_args(inner[0]) if inner else ()
        for i, v in enumerate(value):
            _check(parts[min(i, len(parts) - 1) if parts[-1] is not ... else 0] if parts else Any,
                   v, name)  # fmt: skip
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise UsageError(f"{name} is {value}; it must be a finite number.")
    for branch in _branches(hint):
        bounds = [m for m in getattr(branch, "__metadata__", ()) if isinstance(m, Bound)]
        for bound in bounds:
            if not bound.allows(value):
                raise UsageError(f"{name} is {value}; it {bound}.")


def _branches(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself; an annotated union counts as its members."""
    is_union = typing.get_origin(hint) in (typing.Union, type(int | None))
    return typing.get_args(hint) if is_union else (hint,)

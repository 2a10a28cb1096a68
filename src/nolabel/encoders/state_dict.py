"""Compares a file's tensors with a network's, and describes the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def describe_mismatches(
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    unexpected: str,
    shape: str,
    limit: int = 4,
) -> list[str]:
    """Describes why tensors do not fit a network; empty if they do.

    Args:
        expected: the network's state_dict.
        tensors: the file's tensors, by name.
        unexpected: what to call tensors that the network does not have.
        shape: template for a wrong shape, with {name}, {got} and {expected}.
        limit: names to list of each kind of difference.
    """
    shapes = [
        shape.format(name=n, got=list(tensors[n].shape), expected=list(expected[n].shape))
        for n in expected
        if n in tensors and tensors[n].shape != expected[n].shape
    ]
    differences = {
        "missing": [n for n in expected if n not in tensors],
        unexpected: [n for n in tensors if n not in expected],
        "of another shape": shapes,
    }
    return [f"{what}: {first_names(names, limit)}" for what, names in differences.items() if names]


def first_names(names: Sequence[str], limit: int = 4) -> str:
    """The first names as text, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

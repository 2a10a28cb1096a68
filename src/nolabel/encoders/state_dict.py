"""Whether a file's tensors fit a network, and what to say where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def misfits(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], extra: str, shape: str, most: int = 4
) -> list[str]:
    """What keeps a file's tensors from fitting a network, each kind with its first few names.

    Args:
        own: the network's.
        tensors: the file's.
        extra: what those that the network lacks are called.
        shape: text for a wrong shape, with {name}, {got} and {own}.
        most: names of each kind.
    """
    shapes = [
        shape.format(name=n, got=list(tensors[n].shape), own=list(own[n].shape))
        for n in own
        if n in tensors and tensors[n].shape != own[n].shape
    ]
    kinds = {
        "missing": [n for n in own if n not in tensors],
        extra: [n for n in tensors if n not in own],
        "of another shape": shapes,
    }
    return [f"{kind}: {some(names, most)}" for kind, names in kinds.items() if names]


def some(names: Sequence[str], most: int = 4) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

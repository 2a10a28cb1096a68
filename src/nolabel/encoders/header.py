"""What an encoder file may say about its network: checked before anything is built from it.

The checksum shows that a file is as it was written, not who wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from torch import Tensor

from nolabel.encoders.state_dict import describe_mismatches
from nolabel.errors import FileDamaged

MAX_SIDE = 16_384  # pixels of an image's side
_MAX_NUMBER = 1 << 20  # of an architecture
_MAX_TEXT = 500  # letters of a name
_MAX_LIST = 1_000  # entries of a list
_MAX_NESTING = 4
_COUNTS = ("depth", "layer", "block")  # parts of names of arguments that count layers


def invalid_field(header: Mapping[str, Any]) -> str:
    """The first field of an encoder's header that is not what it must be; "" if all are."""
    for key, fits in _RULES.items():
        if not fits(header.get(key)):
            return key
    channels = header["kwargs"].get("in_chans", 3)
    for key in ("mean", "std"):
        if len(header[key]) != channels:
            return key
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether it is a whole number in [least, most]."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object) -> TypeGuard[int | float]:
    """A number, also one that is not finite: `encoders.loading` refuses those with the reason."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or abs(value) < _MAX_NUMBER


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_LIST and all(map(_is_number, value))


def are_arguments(value: object) -> bool:
    """Whether it can be keyword arguments of a network: few small numbers, short texts, lists."""
    return isinstance(value, dict) and all(_is_argument(v, 0) for v in value.values())


def _is_argument(value: object, nesting: int) -> bool:
    if nesting > _MAX_NESTING:
        return False
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return len(value) <= _MAX_LIST and all(_is_argument(v, nesting + 1) for v in value)
    if value is None or isinstance(value, bool):
        return True
    return _is_text(value) or (_is_number(value) and abs(value) <= _MAX_NUMBER)


def _has_negative(value: object) -> bool:
    """Whether a nested value holds a number below 0: networks would be built from some."""
    if isinstance(value, dict | list):
        return any(map(_has_negative, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and value < 0


def _is_code(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and all(
        isinstance(about, dict) and _is_text(about.get("sha256")) for about in value.values()
    )


_RULES: dict[str, Callable[[Any], bool]] = {
    "name": lambda v: _is_text(v) and bool(v),
    "kwargs": lambda v: (
        are_arguments(v) and not _has_negative(v) and is_whole(v.get("in_chans", 3), 1, _MAX_LIST)
    ),
    "positions": lambda v: v is None or _is_text(v),
    "branch": _is_text,
    "method": _is_text,
    "image_size": lambda v: is_whole(v, 1, MAX_SIDE),
    "mean": _are_numbers,
    "std": _are_numbers,
    "run": lambda v: v is None or isinstance(v, dict),
    "licence": lambda v: v is None or isinstance(v, str),
    "code": _is_code,
    "checksum": _is_text,
}


def check_layers(kwargs: Mapping[str, Any], tensors: Mapping[str, Tensor], label: str) -> None:
    """Checks that a network is not said to have more layers than its file has tensors.

    Args:
        kwargs: the network's arguments.
        tensors: of the file.
        label: the file, for the message.

    Raises:
        FileDamaged: it is.
    """
    layers = sum(_layers(value) for key, value in kwargs.items() if any(c in key for c in _COUNTS))
    if layers > len(tensors):
        raise FileDamaged(
            f"{label} does not fit its own architecture: it describes {layers:,} layers and holds "
            f"{len(tensors):,} tensors."
        )


def _layers(value: object) -> int:
    """Layers that a number, or a list of numbers, counts."""
    if isinstance(value, list):
        return sum(_layers(v) for v in value)
    return value if isinstance(value, int) else 0


def check_tensors(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], label: str, name: str
) -> None:
    """Checks that the tensors of a file are those of its network.

    Args:
        expected: the network's state_dict; shapes are enough.
        tensors: of the file.
        label: the file, for the message.
        name: of the network.

    Raises:
        FileDamaged: they are not.
    """
    shape = "{name} is {got}, not {expected}"
    problems = describe_mismatches(expected, tensors, "unexpected", shape)
    kinds = [n for n in expected if n in tensors and _kind(expected[n]) != _kind(tensors[n])]
    if kinds and not problems:
        n = kinds[0]
        problems = [f"{n} is of {tensors[n].dtype}, not of {expected[n].dtype}"]
    if problems:
        raise FileDamaged(
            f"{label} does not fit its own architecture {name!r}: tensors {'; '.join(problems)}. "
            "Another version of timm may have renamed them; the header says which one wrote the "
            "file."
        )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()

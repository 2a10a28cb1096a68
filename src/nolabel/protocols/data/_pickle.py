"""Reads plain values from a pickle without unpickling it.

The opcodes are read by `pickletools` and interpreted here; only those for lists, dictionaries,
strings, numbers and numeric arrays are allowed. Nothing is imported or called by name, so a file
that needs more is refused before any of its code could run.
"""

from __future__ import annotations

import pickletools
from typing import Any

import numpy as np

from nolabel.errors import FileDamaged

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
     "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
)  # fmt: skip
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_MEMO_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_MEMO_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
# How old protocols write bytes: as text in Latin-1; empty bytes as a call without arguments.
_BYTES = (("_codecs", "encode"), ("__builtin__", "bytes"), ("builtins", "bytes"))
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


class _Name:
    """A global that a pickle refers to."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class _Array:
    """Placeholder of an array, whose values follow in a BUILD opcode."""

    value: np.ndarray | None = None


def plain_values(data: bytes) -> Any:
    """Reads the value of a pickle of plain values.

    Args:
        data: content of the file.

    Raises:
        FileDamaged: it holds anything else, or is truncated.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    try:
        for op, argument, _ in pickletools.genops(data):
            name, arg = op.name, argument if argument is not None else ""
            if name in _IGNORED:
                continue
            if name in _VALUES:
                stack.append(arg)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
            elif name in ("LIST", "TUPLE"):
                items = pop_to_mark()
                stack.append(items if name == "LIST" else tuple(items))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                n = int(name[-1])
                items = stack[-n:]
                del stack[-n:]
                stack.append(tuple(items))
            elif name in ("APPEND", "APPENDS"):
                items = pop_to_mark() if name == "APPENDS" else [stack.pop()]
                stack[-1].extend(items)
            elif name in ("SETITEM", "SETITEMS", "DICT"):
                items = (
                    [*reversed([stack.pop(), stack.pop()])] if name == "SETITEM" else pop_to_mark()
                )
                if name == "DICT":
                    stack.append({})
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name in _MEMO_PUT:
                memo[int(arg)] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _MEMO_GET:
                stack.append(memo[int(arg)])
            elif name == "GLOBAL":
                stack.append(_allowed_name(*arg.split(" ")))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_allowed_name(module, attribute))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduce(function, arguments))
            elif name == "BUILD":
                state = stack.pop()
                stack[-1] = _build(stack[-1], state)
            else:
                raise FileDamaged(
                    f"The file holds more than plain values (opcode {name}). Save it as JSON."
                )
        return _resolve_arrays(stack[-1])
    except FileDamaged:
        raise
    except Exception as error:  # a damaged pickle can raise any type
        raise FileDamaged(f"The file is no pickle of plain values ({error}).") from None


def _allowed_name(module: str, name: str) -> _Name:
    allowed = (module == "numpy" and name in ("ndarray", "dtype")) or (
        module in _NUMPY and name in ("_reconstruct", "scalar")
    )
    allowed = allowed or (module in _NUMERIC and name == "_frombuffer")
    if not (allowed or (module, name) in _BYTES):
        raise FileDamaged(
            f"The file holds {module}.{name}, an object that could run code; only lists, "
            "numbers and arrays are read. Save it as JSON."
        )
    return _Name(module, name)


def _reduce(function: _Name, arguments: tuple[Any, ...]) -> object:
    """REDUCE: the result of an allowed function."""
    if function.name == "encode":
        return arguments[0].encode("latin1")
    if function.name == "bytes" and not arguments:
        return b""
    if function.name == "_reconstruct":
        return _Array()
    if function.name == "dtype":
        dtype = np.dtype(str(arguments[0]))
        if dtype.hasobject:
            raise FileDamaged("The file holds an array of objects; only numeric arrays are read.")
        return dtype
    if function.name == "_frombuffer":
        raw, dtype, shape, order = arguments
        return np.frombuffer(raw, dtype).reshape(shape, order=order)
    if function.name == "scalar":
        return np.frombuffer(_to_bytes(arguments[1]), arguments[0])[0].item()
    raise FileDamaged(f"The file calls {function.module}.{function.name}.")


def _build(target: np.dtype | _Array, state: tuple[Any, ...]) -> np.dtype | _Array:
    """BUILD: sets the values of an array, or the byte order of a dtype."""
    if isinstance(target, np.dtype):
        return target.newbyteorder(state[1]) if state[1] in "<>" else target
    _, shape, dtype, columns_first, raw = state
    values = np.frombuffer(_to_bytes(raw), dtype)
    target.value = values.reshape(shape, order="F" if columns_first else "C")
    return target


def _to_bytes(value: str | bytes) -> bytes:
    return value.encode("latin1") if isinstance(value, str) else value


def _resolve_arrays(value: object) -> object:
    """Replaces placeholders by their arrays, recursively."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_resolve_arrays(k): _resolve_arrays(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolve_arrays(v) for v in value)
    if isinstance(value, _Name):
        raise FileDamaged(
            f"The file holds {value.module}.{value.name} itself, which is no plain value. "
            "Save it as JSON."
        )
    return value

"""Plain values out of a pickled file, without unpickling it.

The operations of a pickle are read one by one (`pickletools`) and only those are followed that put
together lists, dictionaries, texts, numbers and arrays of numbers. Nothing is imported or called
by name, so a file that asks for more is refused before anything happens.
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
_SILENT = frozenset(("PROTO", "FRAME", "STOP"))
_KEEP = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_TAKE = frozenset(("GET", "BINGET", "LONG_BINGET"))
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
# How old forms write bytes: as text in Latin-1, or as nothing at all.
_BYTES = (("_codecs", "encode"), ("__builtin__", "bytes"), ("builtins", "bytes"))
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


class _Name:
    """A name that a pickle asks for."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class _Array:
    """An array that is filled later."""

    value: np.ndarray | None = None


def plain_values(data: bytes) -> Any:
    """The value in a pickle of plain values.

    Raises:
        FileDamaged: it holds anything else, or is broken.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    try:
        for op, given, _ in pickletools.genops(data):
            name, arg = op.name, given if given is not None else ""
            if name in _SILENT:
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
                items = since_mark()
                stack.append(items if name == "LIST" else tuple(items))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                n = int(name[-1])
                items = stack[-n:]
                del stack[-n:]
                stack.append(tuple(items))
            elif name in ("APPEND", "APPENDS"):
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                stack[-1].extend(items)
            elif name in ("SETITEM", "SETITEMS", "DICT"):
                items = (
                    [*reversed([stack.pop(), stack.pop()])] if name == "SETITEM" else since_mark()
                )
                if name == "DICT":
                    stack.append({})
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name in _KEEP:
                memo[int(arg)] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _TAKE:
                stack.append(memo[int(arg)])
            elif name == "GLOBAL":
                stack.append(_known(*arg.split(" ")))
            elif name == "STACK_GLOBAL":
                what, where = stack.pop(), stack.pop()
                stack.append(_known(where, what))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_made(function, arguments))
            elif name == "BUILD":
                state = stack.pop()
                stack[-1] = _filled(stack[-1], state)
            else:
                raise FileDamaged(f"The file asks for more than plain values ({name}).")
        return _resolved(stack[-1])
    except FileDamaged:
        raise
    except Exception as error:  # what is broken fails in any way
        raise FileDamaged(f"The file is no pickle of plain values ({error}).") from None


def _known(module: str, name: str) -> _Name:
    allowed = (module == "numpy" and name in ("ndarray", "dtype")) or (
        module in _NUMPY and name in ("_reconstruct", "scalar")
    )
    allowed = allowed or (module in _NUMERIC and name == "_frombuffer")
    if not (allowed or (module, name) in _BYTES):
        raise FileDamaged(
            f"The file holds {module}.{name}, an object that could run code; lists, numbers and "
            "arrays alone are read. Save it as JSON."
        )
    return _Name(module, name)


def _made(function: _Name, arguments: tuple[Any, ...]) -> object:
    """What a known name makes of its arguments."""
    if function.name == "encode":
        return arguments[0].encode("latin1")
    if function.name == "bytes" and not arguments:
        return b""
    if function.name == "_reconstruct":
        return _Array()
    if function.name == "dtype":
        kind = np.dtype(str(arguments[0]))
        if kind.hasobject:
            raise FileDamaged("The file holds an array of objects; arrays of numbers are read.")
        return kind
    if function.name == "_frombuffer":
        raw, kind, shape, order = arguments
        return np.frombuffer(raw, kind).reshape(shape, order=order)
    if function.name == "scalar":
        return np.frombuffer(_raw(arguments[1]), arguments[0])[0].item()
    raise FileDamaged(f"The file calls {function.module}.{function.name}.")


def _filled(target: np.dtype | _Array, state: tuple[Any, ...]) -> np.dtype | _Array:
    """An array with its numbers, or a type with its order of bytes."""
    if isinstance(target, np.dtype):
        return target.newbyteorder(state[1]) if state[1] in "<>" else target
    _, shape, kind, columns_first, raw = state
    values = np.frombuffer(_raw(raw), kind)
    target.value = values.reshape(shape, order="F" if columns_first else "C")
    return target


def _raw(value: str | bytes) -> bytes:
    return value.encode("latin1") if isinstance(value, str) else value


def _resolved(value: object) -> object:
    """Arrays in place of what stood for them."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_resolved(k): _resolved(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(v) for v in value)
    if isinstance(value, _Name):
        raise FileDamaged(f"The file holds {value.module}.{value.name} itself.")
    return value

"""Parses and writes the names of classes in a user's file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

HASH_DIGITS = 12  # of the 64 digits of the SHA-256; names hold these only
_REFERENCE = re.compile(
    r"(?P<file>.+\.py)(?::(?P<attribute>[A-Za-z_]\w*))?(?:@(?P<digest>[0-9a-f]{12}))?"
)
_PREFIXES = ("random:",)  # of encoder names that go on with a backbone's name
_NO_NAMES = ("out", "code")  # keys of a configuration whose values never name code to execute


@dataclass(frozen=True)
class Reference:
    """A class in a file.

    Attributes:
        file: path as the user gave it, or the file name without a folder if there is a hash.
        attribute: name of the class or function; "" is the only suitable one of the file.
        digest: first 12 hexadecimal digits of the file's SHA-256; "" is the file's present
            content.
    """

    file: str
    attribute: str
    digest: str = ""

    def __str__(self) -> str:
        attribute = f":{self.attribute}" if self.attribute else ""
        return f"{self.file}{attribute}" + (f"@{self.digest}" if self.digest else "")

    @property
    def copy(self) -> str:
        """Path of the copy, relative to the folder of the file that holds the name."""
        path = PurePath(self.file)
        return f"code/{path.stem}-{self.digest}.py"


def parse(text: str) -> Reference | None:
    """The class that `file.py:Class`, `file.py` or `file.py:Class@hash` names; None for others."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        return None
    return Reference(found["file"], found["attribute"] or "", found["digest"] or "")


def is_reference(text: str) -> bool:
    """Whether a name is that of a class in a user's file."""
    return parse(text) is not None


def without_hash(text: str) -> str:
    """Returns `file.py:Class` for `file.py:Class@hash`, and any other name unchanged."""
    reference = parse(text)
    if reference is None or not reference.digest:
        return text
    return f"{reference.file}:{reference.attribute}"


def references(value: object) -> Iterator[Reference]:
    """All references in the strings of a nested value of mappings, lists and tuples.

    The values of the keys "out" (a run's folder) and "code" are skipped.
    """
    if isinstance(value, str):
        for prefix in _PREFIXES:
            value = value.removeprefix(prefix)
        found = parse(value)
        if found is not None:
            yield found
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _NO_NAMES:
                yield from references(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from references(part)

"""How a class in a user's file is named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

HASH_DIGITS = 12  # of the SHA-256, in names; records hold all 64
_REFERENCE = re.compile(
    r"(?P<file>.+\.py)(?::(?P<attribute>[A-Za-z_]\w*))?(?:@(?P<digest>[0-9a-f]{12}))?"
)
_PREFIXES = ("random:",)  # of encoder names, before a backbone's
_NO_NAMES = ("out", "code")  # keys of a configuration whose values name no code to execute


@dataclass(frozen=True)
class Reference:
    """A class in a file.

    Attributes:
        file: path as the user gave it, or the bare file name where there is a hash.
        attribute: name of the class or function; "" is the only one that suits.
        digest: first 12 hexadecimal digits of the file's SHA-256; "" names whatever lies at the
            path.
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
    """`file.py:Class` of `file.py:Class@hash`; any other name as it is."""
    reference = parse(text)
    if reference is None or not reference.digest:
        return text
    return f"{reference.file}:{reference.attribute}"


def references(value: object) -> Iterator[Reference]:
    """All references among the strings of a nested value of mappings, lists and tuples.

    What stands under the keys "out" (where a run was written to) and "code" is left out.
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

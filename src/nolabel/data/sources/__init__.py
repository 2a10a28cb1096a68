"""Image sources, one per file: folders, lists, tar shards, videos, arrays, named data sets."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`open_source` was here before `nolabel.data.open` was; scripts may still import it."""
    if name == "open_source":
        return importlib.import_module("nolabel.data.open").open_source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Encoders with weights: the encoder file, and every way to name one (`load`)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nolabel.encoders.encoder import Encoder
    from nolabel.encoders.file import load_encoder_file, read_header, save_encoder
    from nolabel.encoders.loading import load
    from nolabel.encoders.text import TextEncoder, load_text

__all__ = [
    "Encoder",
    "TextEncoder",
    "load",
    "load_encoder_file",
    "load_text",
    "read_header",
    "save_encoder",
]

_LAZY = {
    "Encoder": "encoder",
    "TextEncoder": "text",
    "load_text": "text",
    "load": "loading",
    "load_encoder_file": "file",
    "read_header": "file",
    "save_encoder": "file",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

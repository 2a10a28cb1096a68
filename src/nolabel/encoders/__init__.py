"""Encoders with weights: the encoder file, and every way to name one (`load`).

The tables of `nolabel list weights` are imported at once and need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nolabel.catalogue import Entry, by_name
from nolabel.encoders.convert.families import LAYOUTS

if TYPE_CHECKING:
    from nolabel.encoders.encoder import Encoder
    from nolabel.encoders.file import load_encoder_file, read_header, save_encoder
    from nolabel.encoders.loading import load
    from nolabel.encoders.text import TextEncoder, load_text

__all__ = [
    "ENCODERS",
    "WEIGHTS",
    "Encoder",
    "TextEncoder",
    "load",
    "load_encoder_file",
    "load_text",
    "read_header",
    "save_encoder",
]

_KINDS = "encoders (ENC)"
ENCODERS: dict[str, Entry] = by_name(
    Entry(name="RUN", description="the folder of a run", family=_KINDS),
    Entry(name="FILE.safetensors", description="an encoder file that nolabel wrote", family=_KINDS),
    Entry(
        name="timm:NAME[.TAG]",
        description="weights that timm publishes, of ViT, BEiT, Swin and ResNet; fetched once",
        family=_KINDS,
    ),
    Entry(
        name="openclip:NAME/TAG",
        description="CLIP's ViTs with their text towers, through open_clip; fetched once",
        family=_KINDS,
        needs="pip install 'nolabel[clip]'",
    ),
    Entry(
        name="random:NAME",
        description="the architecture with fresh weights, always the same ones",
        family=_KINDS,
    ),
    Entry(
        name="random:RUN",
        description="the architecture of a run with weights as its method starts",
        family=_KINDS,
    ),
    Entry(name="pixels", description="raw pixels, the baseline", family=_KINDS),
)
# What `nolabel list weights` shows: everything that can be loaded, or imported and then loaded.
WEIGHTS: dict[str, Entry] = {**ENCODERS, **LAYOUTS}

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

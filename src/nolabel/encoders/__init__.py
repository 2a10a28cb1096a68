"""Encoders with weights: the encoder file, and every way to name one (`load`).

Only the tables of `nolabel list weights` are imported here; they need no torch. The rest is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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

_FAMILY = "encoders (ENC)"
ENCODERS: dict[str, Entry] = by_name(
    Entry(name="RUN", description="the folder of a run", family=_FAMILY),
    Entry(
        name="FILE.safetensors", description="an encoder file that nolabel wrote", family=_FAMILY
    ),
    Entry(
        name="timm:NAME[.TAG]",
        description="weights that timm publishes, of ViT, BEiT, Swin and ResNet; downloaded once",
        family=_FAMILY,
    ),
    Entry(
        name="openclip:NAME/TAG",
        description="CLIP's ViTs with their text towers, through open_clip; downloaded once",
        family=_FAMILY,
        needs="pip install 'nolabel[clip]'",
    ),
    Entry(
        name="random:NAME",
        description="the architecture with random weights (fixed seed)",
        family=_FAMILY,
    ),
    Entry(
        name="random:RUN",
        description="the architecture of a run with its method's initial weights",
        family=_FAMILY,
    ),
    Entry(name="pixels", description="raw pixels, the baseline", family=_FAMILY),
)
# `nolabel list weights`: what can be loaded, and the layouts that `nolabel import` reads.
WEIGHTS: dict[str, Entry] = {**ENCODERS, **LAYOUTS}

_LAZY_IMPORTS = {
    "Encoder": "encoder",
    "TextEncoder": "text",
    "load_text": "text",
    "load": "loading",
    "load_encoder_file": "file",
    "read_header": "file",
    "save_encoder": "file",
}


def __getattr__(name: str) -> object:
    if name in _LAZY_IMPORTS:
        return vars(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

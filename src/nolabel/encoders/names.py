"""Names of encoders (ENC on the command line)."""

from __future__ import annotations

import os

PREFIXES = ("timm", "openclip", "random")


def absolute_encoder(name: str) -> str:
    """An encoder's name that means the same from every folder: paths become absolute.

    Args:
        name: as for `load`, or the folder of a run; what is no path stays as it is.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in PREFIXES:
        return f"random:{absolute_encoder(rest)}" if kind == "random" else name
    return os.path.abspath(name) if name not in ("", "pixels") and os.path.exists(name) else name

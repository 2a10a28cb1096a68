"""The README.md of an export: what the encoder is, and how to load it."""

from __future__ import annotations

import os
from pathlib import Path

from nolabel.encoders.encoder import Encoder


def model_card(encoder: Encoder, to: str, difference: float, loading: str) -> str:
    """Model card in Markdown.

    Args:
        encoder: the encoder.
        to: the format.
        difference: largest absolute difference of features after reading back.
        loading: code that loads the export.
    """
    b, meta = encoder.backbone, encoder.meta
    run = meta.get("run") or {}
    settings = run.get("settings", run) if isinstance(run, dict) else {}
    settings = settings if isinstance(settings, dict) else {}  # of a file from anybody
    fields = {
        "method": meta.get("method") or meta.get("family"), "branch": meta.get("branch"),
        "data": os.path.basename(str(settings.get("data") or "")), "steps": settings.get("steps"),
        "network": _network(b.name, settings.get("backbone")), "embedding": b.dim,
        "images": f"{encoder.size} px, shorter side {encoder.resize} px, then the centre",
        "mean of pixels in 0..1": ", ".join(f"{v:g}" for v in encoder.mean),
        "deviation": ", ".join(f"{v:g}" for v in encoder.std),
        "licence": meta.get("licence") or meta.get("license"),
    }  # fmt: skip
    rows = "\n".join(f"| {k} | {v} |" for k, v in fields.items() if v)
    snippet = loading.replace("; ", "\n")
    poolers = (
        "\n\nOther outputs are not the embedding: a `pooler_output` may have random weights, which "
        "differ at every loading."
        if to == "hf"
        else ""
    )
    usage = "The graph takes pixels in 0..1 and normalises them itself." if to == "onnx" else (
        "Images have to be normalised as the table says."
    )  # fmt: skip
    return (
        f"# {Path(encoder.name).name}\n\nAn image encoder, pre-trained without labels with nolabel."
        f"\n\n| | |\n|---|---|\n{rows}\n\nLoad it:\n\n```python\n{snippet}\n```\n\n"
        f"{usage}{poolers}\n\n"
        f"Read back and compared with the original encoder, features differ by at most "
        f"{difference:.1e}.\n"
    )


def _network(name: str, preset: str | None) -> str:
    """The name of a network as a run had it, and timm's where that is another one."""
    return name if preset in (None, name) else f"{preset} (timm's {name})"

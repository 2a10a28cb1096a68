"""What the encoder saw while it learnt: a strip of looks at the same images, and the last one to
touch."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from nolabel.engine.monitor.snapshots import read_snapshots
from nolabel.pictures._tiles import data_uri, heat, sheet
from nolabel.pictures.pca import align_components, principal, to_colours

TILE = 80


def strip(folder: Path) -> str:
    """Attention and principal components of the same images after some steps, as HTML."""
    found = read_snapshots(folder)
    if found is None:
        return ""
    pixels, seen = found
    titles = ["image", *(f"{step:,} steps" for step, _ in seen)]
    columns, before = [], None
    for _, look in seen:
        patches = look["patches"].astype(np.float32)
        n, h, w, k = patches.shape
        scores = principal(patches.reshape(-1, k))[0]
        scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1]))).reshape(n, h, w, 3)
        before = scores if before is None else align_components(scores, before)
        columns.append(to_colours(before))
    rows = [[image, *(c[i] for c in columns)] for i, image in enumerate(pixels)]
    out = _figure(
        sheet(rows, titles, TILE),
        "Patch features: three principal components as colours, each column turned towards the "
        "one before it.",
    )
    if all("attention" in look for _, look in seen):
        rows = [
            [image, *(heat(look["attention"][i].astype(np.float32)) for _, look in seen)]
            for i, image in enumerate(pixels)
        ]
        out += _figure(sheet(rows, titles, TILE), "Attention of the class token, mean of heads.")
    return "<h2>What it saw while it learnt</h2>" + out


def _figure(image: np.ndarray, caption: str) -> str:
    return (
        f'<figure><img alt="{caption}" src="{data_uri(image)}"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def touch(folder: Path) -> str:
    """Images to hover over: the cosine of every patch with the one that is pointed at, as HTML; the
    script that draws it is the page's."""
    found = read_snapshots(folder)
    if found is None:
        return ""
    pixels, seen = found
    step, look = seen[-1]
    patches = look["patches"].astype(np.float32)
    n, h, w, k = patches.shape
    flat = patches.reshape(n, h * w, k)
    small = quantised(flat)
    told = {
        "images": [data_uri(image) for image in pixels],
        "grid": [h, w],
        "width": k,
        "features": base64.b64encode(small.tobytes()).decode(),
    }
    error = cosine_error(flat, small)
    return (
        f"<h2>Touch it</h2><p>Point at a patch: the redder another, the more alike it is after "
        f"step {step:,}. A click holds it; arrow keys move it.</p>"
        '<div class="touch" id="touch"></div>'
        f'<p class="soft">{h} x {w} patches, {k} numbers of 8 bits each; cosines are off by '
        f"{error:.3f} at most.</p>"
        f'<script type="application/json" id="touch-data">{script_json(told)}</script>'
    )


def quantised(z: np.ndarray) -> np.ndarray:
    """Rows of float [..., K] as int8, each in units of its own largest number."""
    largest = np.abs(z).max(-1, keepdims=True)
    return np.rint(z / np.maximum(largest, 1e-12) * 127).astype(np.int8)


def cosine_error(z: np.ndarray, small: np.ndarray) -> float:
    """The largest difference between cosines of rows [N, P, K] and of their 8-bit form."""

    def cosines(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1, x.shape[-1]).astype(np.float64)
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return x @ x.T

    return float(np.abs(cosines(z) - cosines(small)).max())


def script_json(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

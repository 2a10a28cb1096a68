"""The feature snapshots of a run as HTML: a strip over time, and the last one interactively."""

from __future__ import annotations

import base64
import json

import numpy as np

from nolabel.engine.monitor.snapshots import Snapshots
from nolabel.pictures._tiles import data_uri, heat, sheet
from nolabel.pictures.pca import align_components, principal, to_colours
from nolabel.tools.report.packing import packed

TILE = 80
MOST_PATCHES = 5_000  # all pairs of an image's patches are compared


def snapshot_strip(saved: Snapshots | None) -> str:
    """Principal components and attention of the same images after some steps, as HTML."""
    if saved is None:
        return ""
    pixels, snapshots = saved
    titles = ["image", *(f"{step:,} steps" for step, _ in snapshots)]
    columns, before = [], None
    for _, arrays in snapshots:
        patches = arrays["patches"].astype(np.float32)
        n, h, w, k = patches.shape
        scores = principal(patches.reshape(-1, k))[0]
        scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1]))).reshape(n, h, w, 3)
        before = scores if before is None else align_components(scores, before)
        columns.append(to_colours(before))
    rows = [[image, *(c[i] for c in columns)] for i, image in enumerate(pixels)]
    out = _figure(
        sheet(rows, titles, TILE),
        "Patch features: three principal components as colours, each column rotated to match "
        "the one before it.",
    )
    if all("attention" in arrays for _, arrays in snapshots):
        rows = [
            [image, *(heat(arrays["attention"][i].astype(np.float32)) for _, arrays in snapshots)]
            for i, image in enumerate(pixels)
        ]
        out += _figure(sheet(rows, titles, TILE), "Attention of the class token, mean of heads.")
    return out


def _figure(image: np.ndarray, caption: str) -> str:
    return (
        f'<figure><img alt="{caption}" src="{packed(image)}"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def similarity_viewer(saved: Snapshots | None) -> str:
    """Images with the cosine similarity of every patch to the one under the pointer, as HTML.

    The page adds `script.js`, which draws it.
    """
    if saved is None:
        return ""
    pixels, snapshots = saved
    step, arrays = snapshots[-1]
    patches = arrays["patches"].astype(np.float32)
    n, h, w, k = patches.shape
    if h * w > MOST_PATCHES:
        return ""
    flat = patches.reshape(n, h * w, k)
    small = quantised(flat)
    data = {
        "images": [data_uri(image) for image in pixels],
        "grid": [h, w],
        "width": k,
        "features": base64.b64encode(small.tobytes()).decode(),
    }
    error = cosine_error(flat, small)
    return (
        "<p>Point at a patch: the redder another patch, the more similar its features after step "
        f"{step:,}. A click fixes the patch; arrow keys move it.</p>"
        '<div class="touch" id="touch"></div>'
        f'<p class="soft">{h} x {w} patches, {k} numbers of 8 bits each; cosines are off by '
        f"{error:.3f} at most.</p>"
        f'<script type="application/json" id="touch-data">{script_json(data)}</script>'
    )


def quantised(z: np.ndarray) -> np.ndarray:
    """Rows of float [..., K] quantised to int8, each scaled by its largest absolute value."""
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
    """JSON without "<", so that it cannot close its script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

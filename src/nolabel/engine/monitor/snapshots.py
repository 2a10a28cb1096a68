"""Saves the patch features of the same few images at several steps, for the report.

A run's folder holds `film/images.npz` (pixels uint8 [n, S, S, 3]) and a file for each snapshot,
`film/step-N.npz`: `patches` float16 [n, h, w, K], the unit-length features of the last layer
projected to their first K principal components, and `attention` float16 [n, h, w] of the class
token, if the network has one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nolabel._files import atomic
from nolabel.backbones.base import Backbone
from nolabel.data._cache import load_arrays
from nolabel.data.decoded import enough_pixels, shrink
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.errors import BadImage
from nolabel.nn.pixels import to_pixels
from nolabel.views.plan import ViewPlan

FOLDER = "film"
IMAGES = 4
SNAPSHOTS = 8  # at equal distances over the run, in addition to the one before training
WIDTH = 64  # K at most
# Pixels of the images, and (step, arrays) of each snapshot.
Snapshots = tuple[np.ndarray, list[tuple[int, dict[str, np.ndarray]]]]
_MOST_BYTES, _MOST_FILES = 200_000_000, 1_000  # of a file's arrays, and of files
_TRIED = 40  # images to try until IMAGES of them could be read


def snapshot_steps(total: int) -> set[int]:
    """The steps after which a run of `total` steps takes a snapshot; 0 is before training."""
    return {0} | {round(total * k / SNAPSHOTS) for k in range(1, SNAPSHOTS + 1)}


class FeatureSnapshots:
    """Saves the features of a few training images at a few steps of a run.

    Args:
        folder: of the run.
        source: training data; the images are taken at equal distances.
        plan: view plan, for mean and standard deviation.
        image_size: side in pixels.
        total: steps of the run; 0: no snapshot is taken.
        note: prints a line if a snapshot could not be written; training continues.
    """

    def __init__(
        self, folder: Path, source: Source, plan: ViewPlan, image_size: int, total: int,
        note: Callable[[str], Any],
    ):  # fmt: skip
        self.folder, self.plan, self.size, self.note = folder / FOLDER, plan, image_size, note
        self.due = snapshot_steps(total) if total else set()
        self.images: list[np.ndarray] = []
        for i in np.unique(np.linspace(0, len(source) - 1, min(_TRIED, len(source))).astype(int)):
            try:
                self.images.append(shrink(source.read(int(i)).image, enough_pixels(image_size)))
            except BadImage:
                continue
            if len(self.images) == IMAGES:
                break

    def snapshot(self, step: int, backbone: Backbone) -> None:
        """Writes the features after `step` steps, if it is one of the run's snapshot steps."""
        if step not in self.due or not self.images:
            return
        try:
            self._write(step, backbone)
        except OSError as error:
            self.note(f"Could not write the snapshot of step {step}: {error}")

    def _write(self, step: int, backbone: Backbone) -> None:
        encoder = Encoder(backbone, mean=self.plan.mean, std=self.plan.std, image_size=self.size)
        x = encoder.prepare(self.images)
        self.folder.mkdir(exist_ok=True)
        if step == 0 or not (self.folder / "images.npz").exists():
            pixels = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
            _write(self.folder / "images.npz", {"pixels": pixels})
        with encoder.evaluating():
            t = backbone.tokens(x)
        z = F.normalize(t.patches.float().cpu(), dim=-1)
        flat = z.flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(flat.T @ flat)
        main = vectors[:, values.argsort(descending=True)[:WIDTH]].float()
        seen = {"patches": (z @ main).unflatten(1, t.grid).half().numpy()}
        if "attention" in backbone.can and t.prefix is not None and t.prefix.shape[1]:
            a = encoder.attention(x).mean(1)
            seen["attention"] = a.unflatten(1, t.grid).half().numpy()
        _write(self.folder / f"step-{step:09d}.npz", seen)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    some: dict[str, Any] = arrays
    with atomic(path) as file:
        np.savez_compressed(file, **some)


def read_snapshots(folder: Path) -> Snapshots | None:
    """The images of a run's snapshots, and (step, arrays) of each snapshot.

    None if there are none, or if one is damaged.
    """
    own = folder / FOLDER
    images = load_arrays(own / "images.npz", _MOST_BYTES) or {}
    pixels = images.get("pixels")
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size:
        return None
    out: list[tuple[int, dict[str, np.ndarray]]] = []
    for path in sorted(own.glob("step-*.npz"))[:_MOST_FILES]:
        arrays = load_arrays(path, _MOST_BYTES)
        if arrays is None or not path.stem[5:].isdecimal() or not _fit(arrays, len(pixels)):
            return None
        out.append((int(path.stem[5:]), arrays))
    return (pixels, out) if out else None


def _fit(arrays: dict[str, np.ndarray], images: int) -> bool:
    """Whether the arrays are those of a snapshot of so many images."""
    patches, attention = arrays.get("patches"), arrays.get("attention")
    if patches is None or patches.ndim != 4 or len(patches) != images or not patches.size:
        return False
    if attention is not None and attention.shape != patches.shape[:3]:
        return False
    some = [a for a in (patches, attention) if a is not None]
    return all(a.dtype.kind == "f" and bool(np.isfinite(a).all()) for a in some)

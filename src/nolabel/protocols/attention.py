"""Attention segmentation: the class token's attention as a mask of the figure.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, §4.2.2. For each
head, the smallest set of patches with `mass` of the class token's attention is the predicted mask;
its score is the intersection over union with the figure's mask, averaged over images.

    best head of each image     the published number; the head is chosen with the ground truth
    one head                    the head that is best on the training split, used on all test images
    head mean                   the mean of all heads' attention
    most that the grid allows   the best mask of whole patches: an upper bound
    whole image                 every pixel is predicted as figure

Void pixels of the mask (255) are ignored. Images and masks are resized and cropped as the encoder
prepares its images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from nolabel.backbones.base import require
from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.errors import DataError, UsageError
from nolabel.nn.patches import mass_mask
from nolabel.protocols._options import at_least, build_options
from nolabel.protocols._ranking import row
from nolabel.protocols.data.figures import Figures, open_figures
from nolabel.protocols.report import Report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the attention protocol."""

    mass: float = 0.6  # share of the attention in the predicted mask
    layer: int = -1  # block whose attention is used; -1 is the last
    batch_size: int = 64  # images at once

    def __post_init__(self) -> None:
        if not 0 < self.mass < 1:
            raise UsageError(f"mass must lie between 0 and 1, got {self.mass}.")
        at_least(self, batch_size=1)


class FigureSplits(NamedTuple):
    """Images with masks: train to choose a head on, test to score."""

    name: str
    train: Figures
    test: Figures


def open_test(test: str | os.PathLike[str] | FigureSplits, encoder: Encoder) -> FigureSplits:
    """Opens both splits of a set with masks; raises as `open_figures`."""
    if isinstance(test, FigureSplits):
        return test
    parts = [open_figures(test, split, encoder.image_size) for split in ("train", "val")]
    return FigureSplits(parts[1].name, *parts)


def run_attention(
    encoder: Encoder,
    train: Source | None,
    test: FigureSplits,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Evaluates the class token's attention by the masks of the figures.

    Args:
        encoder: one with a class token.
        train: not used.
        test: the images with masks.
        features: not used.
        **options: fields of `Options`.

    Raises:
        UsageError: the encoder has no attention.
        DataError: no image has a figure.
    """
    o = build_options(Options, options)
    require(encoder.backbone, ["attention"], "Attention segmentation")
    head = int(head_scores(encoder, test.train, o)["heads"].mean(0).argmax())
    s = head_scores(encoder, test.test, o)
    rows = [
        row(f"one head ({head}, chosen on train)", "IoU", s["heads"][:, head]),
        row("head mean", "IoU", s["mean"]),
        row("best head of each image", "IoU", s["heads"].max(1)),
        row("most that the grid allows", "IoU", s["ceiling"]),
        row("whole image", "IoU", s["whole"]),
    ]
    notes = (
        f"{len(s['mean'])} images, {o.mass:.0%} of the mass, layer {o.layer}, patches of "
        f"{encoder.backbone.patch_size} px at {encoder.image_size} px",
        "the best head of each image is chosen with the ground truth, as in published numbers",
    )
    return Report(
        protocol="attention", encoder=encoder.name, train=test.train.name, test=test.test.name,
        rows=tuple(rows), best=rows[0], notes=notes,
    )  # fmt: skip


def head_scores(encoder: Encoder, figures: Figures, o: Options) -> dict[str, np.ndarray]:
    """IoU of every image that shows a figure.

    Args:
        encoder: one with a class token.
        figures: images with masks.
        o: the protocol's options.

    Returns:
        float64: "heads" [N, heads]; "mean", "ceiling" and "whole" [N].

    Raises:
        DataError: no image has a figure.
    """
    out: dict[str, list[Any]] = {"heads": [], "mean": [], "ceiling": [], "whole": []}
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []

    def flush() -> None:
        x = encoder.prepare(images)
        a = encoder.attention(x, o.layer)  # [n, heads, P]
        cell = encoder.backbone.patch_size
        grid = (x.shape[-2] // cell, x.shape[-1] // cell)
        maps = torch.cat([a, a.mean(1, keepdim=True)], 1)
        guesses = mass_mask(maps, o.mass).unflatten(-1, grid).numpy()
        for g, mask in zip(guesses, masks, strict=True):
            inside, outside = areas(mask, cell)
            ious = iou(g, inside, outside)
            out["heads"].append(ious[:-1])
            out["mean"].append(ious[-1])
            out["ceiling"].append(ceiling(inside, outside))
            out["whole"].append(iou(np.ones((1, *grid), bool), inside, outside)[0])
        images.clear()
        masks.clear()

    with progress_bar(f"{encoder.name} on {figures.name}", len(figures), True) as advance:
        for image, mask in figures:
            advance(1)
            prepared = prepare_mask(mask, encoder)
            if (prepared == 1).any():
                images.append(image)
                masks.append(prepared)
            if len(images) == o.batch_size:
                flush()
        if images:
            flush()
    if not out["mean"]:
        raise DataError(f"No image of {figures.name!r} shows a figure.")
    return {k: np.stack(v).astype(float) for k, v in out.items()}


def prepare_mask(mask: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Resizes and crops a mask as the encoder prepares its image.

    Args:
        mask: uint8 [H, W].
        encoder: the encoder.

    Returns:
        uint8 [S, S].
    """
    h, w = mask.shape
    scale = encoder.resize / min(h, w)
    height, width = round(h * scale), round(w * scale)
    if (height, width) != (h, w):
        mask = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    s = encoder.image_size
    top, left = (height - s) // 2, (width - s) // 2
    return mask[top : top + s, left : left + s]


def areas(mask: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of figure and ground pixels in each patch; void pixels (255) count as neither.

    Args:
        mask: uint8 [H, W], 1 figure, 0 ground.
        cell: side of a patch in pixels.

    Returns:
        Figure and ground, int64 [h, w] each.
    """

    def sum_cells(x: np.ndarray) -> np.ndarray:
        h, w = x.shape[0] // cell, x.shape[1] // cell
        return x[: h * cell, : w * cell].reshape(h, cell, w, cell).sum((1, 3))

    return sum_cells(mask == 1), sum_cells(mask == 0)


def iou(guess: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Intersection over union of masks of whole patches with the true mask.

    Args:
        guess: bool [..., h, w].
        inside: figure pixels of each patch, int [h, w].
        outside: ground pixels of each patch, int [h, w].

    Returns:
        float64 [...].
    """
    hit = (guess * inside).sum((-2, -1))
    union = inside.sum() + (guess * outside).sum((-2, -1))
    return np.where(union > 0, hit / np.maximum(union, 1), 1.0)


def ceiling(inside: np.ndarray, outside: np.ndarray) -> float:
    """The largest IoU that a mask of whole patches can have.

    With a_i figure and b_i ground pixels in patch i and A = sum of all a_i, a set of patches has
    IoU sum(a) / (A + sum(b)). A patch is in the best set of IoU v exactly if a_i > v b_i, so the
    best set is a prefix of the patches sorted by descending a_i / b_i.

    Args:
        inside: figure pixels of each patch, int [h, w].
        outside: ground pixels of each patch, int [h, w].
    """
    a, b = inside.ravel().astype(float), outside.ravel().astype(float)
    order = np.argsort(-(a / np.maximum(b, 1e-9)), kind="stable")
    values = np.cumsum(a[order]) / (a.sum() + np.cumsum(b[order]))
    return float(values.max())

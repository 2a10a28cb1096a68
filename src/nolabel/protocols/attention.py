"""Attention segmentation: does the class token look at the figure?

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, §4.2.2. For each
head, the fewest patches that hold `mass` of the class token's attention are the guess; its score is
the intersection over union with the figure's mask, averaged over images.

    best head of each image     the published number; the head is chosen with the ground truth
    one head                    the head that is best on the training split, used on all test images
    head mean                   the mean of all heads' attention
    most that the grid allows   the best mask that could be made of whole patches
    whole image                 everything is figure

Pixels of the mask that are void (255) are left out of both sides. Images and masks are resized and
cut as the encoder prepares its images.
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
from nolabel.protocols._options import at_least, build
from nolabel.protocols._ranking import row
from nolabel.protocols.data.figures import Figures, open_figures
from nolabel.protocols.report import Report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the attention protocol."""

    mass: float = 0.6  # share of the attention that the guess holds
    layer: int = -1  # block whose attention is taken; -1 is the last
    batch_size: int = 64  # images at once

    def __post_init__(self) -> None:
        if not 0 < self.mass < 1:
            raise UsageError(f"mass must lie between 0 and 1, got {self.mass}.")
        at_least(self, batch_size=1)


class Pair(NamedTuple):
    """Images with masks: one split to choose a head on, one to judge."""

    name: str
    train: Figures
    test: Figures


def open_test(test: str | os.PathLike[str] | Pair, encoder: Encoder) -> Pair:
    """Both splits of a set with masks."""
    if isinstance(test, Pair):
        return test
    parts = [open_figures(test, split, encoder.image_size) for split in ("train", "val")]
    return Pair(parts[1].name, *parts)


def run_attention(
    encoder: Encoder,
    train: Source | None,
    test: Pair,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges the class token's attention by the figures' masks.

    Args:
        encoder: one with a class token.
        train: not used.
        test: `Pair`.
        features: not used.
        **options: fields of `Options`.

    Raises:
        UsageError: the encoder has no attention to show.
        DataError: no image has a figure.
    """
    o = build(Options, options)
    require(encoder.backbone, ["attention"], "Attention segmentation")
    chosen = int(head_scores(encoder, test.train, o)["heads"].mean(0).argmax())
    s = head_scores(encoder, test.test, o)
    rows = [
        row(f"one head ({chosen}, chosen on train)", "IoU", s["heads"][:, chosen]),
        row("head mean", "IoU", s["mean"]),
        row("best head of each image", "IoU", s["heads"].max(1)),
        row("most that the grid allows", "IoU", s["ceiling"]),
        row("whole image", "IoU", s["whole"]),
    ]
    notes = (
        f"{len(s['mean'])} images, {o.mass:.0%} of the mass, layer {o.layer}, patches of "
        f"{encoder.backbone.patch_size} px at {encoder.image_size} px",
        "the best head of each image is chosen with the truth, as published numbers are",
    )
    return Report(
        protocol="attention", encoder=encoder.name, train=test.train.name, test=test.test.name,
        rows=tuple(rows), best=rows[0], notes=notes,
    )  # fmt: skip


def head_scores(encoder: Encoder, figures: Figures, o: Options) -> dict[str, np.ndarray]:
    """IoU of every image: heads [N, heads]; mean, ceiling and whole [N]."""
    out: dict[str, list[Any]] = {"heads": [], "mean": [], "ceiling": [], "whole": []}
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []

    def flush() -> None:
        x = encoder.prepare(images)
        a = encoder.attention(x, o.layer)  # [n, heads, P]
        cell = encoder.backbone.patch_size
        grid = (x.shape[-2] // cell, x.shape[-1] // cell)
        both = torch.cat([a, a.mean(1, keepdim=True)], 1)
        guess = mass_mask(both, o.mass).unflatten(-1, grid).numpy()
        for g, mask in zip(guess, masks, strict=True):
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
            cut = prepared_mask(mask, encoder)
            if (cut == 1).any():
                images.append(image)
                masks.append(cut)
            if len(images) == o.batch_size:
                flush()
        if images:
            flush()
    if not out["mean"]:
        raise DataError(f"No image of {figures.name!r} shows a figure.")
    return {k: np.stack(v).astype(float) for k, v in out.items()}


def prepared_mask(mask: np.ndarray, encoder: Encoder) -> np.ndarray:
    """A mask [H, W] as the encoder sees its image: the shorter side resized, the centre cut."""
    h, w = mask.shape
    scale = encoder.resize / min(h, w)
    height, width = round(h * scale), round(w * scale)
    if (height, width) != (h, w):
        mask = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    s = encoder.image_size
    top, left = (height - s) // 2, (width - s) // 2
    return mask[top : top + s, left : left + s]


def areas(mask: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of figure and of ground in each patch, int [h, w] each; void is in neither."""

    def summed(x: np.ndarray) -> np.ndarray:
        h, w = x.shape[0] // cell, x.shape[1] // cell
        return x[: h * cell, : w * cell].reshape(h, cell, w, cell).sum((1, 3))

    return summed(mask == 1), summed(mask == 0)


def iou(guess: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Of guesses bool [..., h, w] of whole patches against the areas [h, w] of the truth."""
    hit = (guess * inside).sum((-2, -1))
    union = inside.sum() + (guess * outside).sum((-2, -1))
    return np.where(union > 0, hit / np.maximum(union, 1), 1.0)


def ceiling(inside: np.ndarray, outside: np.ndarray) -> float:
    """The largest IoU of any set of patches.

    With figure a_i and ground b_i in patch i, a set has sum(a) / (A + sum(b)). A patch is in the
    best set of value v exactly if a_i > v b_i, so the best sets are the beginnings of the patches
    sorted by a_i / b_i.
    """
    a, b = inside.ravel().astype(float), outside.ravel().astype(float)
    order = np.argsort(-(a / np.maximum(b, 1e-9)), kind="stable")
    values = np.cumsum(a[order]) / (a.sum() + np.cumsum(b[order]))
    return float(values.max())

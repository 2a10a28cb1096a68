"""Retrieval: every query ranks a database by cosine similarity; mean average precision.

The protocol of Radenovic et al., "Revisiting Oxford and Paris", 2018, arXiv 1803.11285, as Caron et
al., 2021, use it: the embedding of the whole image, its longest side scaled down to `longest`,
averaged over `scales`. For landmarks, easy counts easy images alone, hard likewise, medium both;
what does not count is junk and is taken out of the list.

Any labelled set serves as well: every image asks for the others of its group (the column `group` of
a table; without one, its class).

Differs from the original: the official protocol cuts the query to its box, DINO's does not; `box`
chooses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nolabel.backbones.base import require
from nolabel.data.open import open_source
from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.data.sources.items import Items
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.errors import DataError, UsageError
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._ranking import average_precision, places, precision_at, row
from nolabel.protocols.data.revisited import Revisited, find_truth, open_revisited
from nolabel.protocols.report import Report

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

_CHUNK_FLOATS = 2**24  # similarities held at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the retrieval protocol."""

    longest: int | None = None  # longest side in pixels, shape kept; default: a centre square
    scales: tuple[float, ...] = (1.0,)  # whose embeddings are averaged; papers: 1 0.7071 0.5
    box: bool = False  # cut queries to their box, as the official protocol does
    k: tuple[int, ...] = (1, 5, 10)  # places at which precision is taken
    batch_size: int = 256  # images embedded at once, where they all have one size

    def __post_init__(self) -> None:
        for name, kind in (("scales", float), ("k", int)):
            as_tuples(self, name)
            value = vars(self)[name]
            object.__setattr__(self, name, tuple(kind(v) for v in value))
            if not value or not all(v > 0 and math.isfinite(v) for v in value):
                raise UsageError(f"{name} must be numbers above 0, got {value!r}.")
        if self.longest is not None and self.longest < 16:
            raise UsageError(f"longest must be at least 16 pixels, got {self.longest}.")
        if self.longest is None and self.scales != (1.0,):
            raise UsageError("Several scales need --longest, the side of the largest one.")
        at_least(self, batch_size=1)


def open_test(test: SourceSpec | Revisited, encoder: Encoder) -> Source | Revisited:
    """A folder of the landmarks' layout, or any source with groups or labels."""
    if isinstance(test, Revisited):
        return test
    if isinstance(test, str) and find_truth(test):
        return open_revisited(test)
    return open_source(
        test, image_size=encoder.image_size, split_default="test", channels=encoder.channels
    )


def run_retrieval(
    encoder: Encoder,
    train: Source | None,
    test: Source | Revisited,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder by what its embedding finds.

    Args:
        encoder: the encoder.
        train: not used.
        test: a source with groups or labels, or `Revisited`.
        features: features of train and test, where they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: no groups, or none with two images; or an image cannot be read.
        UsageError: the encoder cannot take images of other sizes, which `longest` makes.
    """
    o = build_options(Options, options)
    if o.longest is not None or isinstance(test, Revisited):
        require(encoder.backbone, ["any_size"], "Retrieval with whole images")
    if isinstance(test, Revisited):
        return _landmarks(encoder, test, o)
    if o.box:
        raise UsageError("Boxes belong to the landmarks' layout; this set has none.")
    groups, kind = _groups(test)
    if o.longest is None:
        found = features[1] if features else extract(encoder, test, batch_size=o.batch_size)
        z, kept = found.values, found.keys.numpy()
    else:
        z, kept = whole_images(encoder, test, o.longest, o.scales), np.arange(len(test))
    own = groups[kept]
    sizes = np.bincount(own)
    asks = np.flatnonzero(sizes[own] > 1)
    if not len(asks):
        raise DataError(f"{test.name!r} has no two images of one {kind}, so nothing can be found.")
    aps, precisions = _rank_groups(z, own, asks, o.k)
    chance = float(((sizes[own[asks]] - 1) / (len(own) - 1)).mean())
    rows = [row(f"same {kind}", "mAP", aps)]
    rows += [
        row(f"same {kind}", f"P@{k}", precisions[:, i], **({"chance": chance} if k == 1 else {}))
        for i, k in enumerate(o.k)
    ]
    notes = [f"every image asks for the others of its {kind}, among {len(own):,} images"]
    if len(asks) < len(own):
        notes.append(f"{len(own) - len(asks)} image(s) are alone in their {kind} and do not ask")
    return Report(
        protocol="retrieval", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=rows[0], notes=tuple(notes),
    )  # fmt: skip


def _rank_groups(
    z: Tensor, own: np.ndarray, asks: np.ndarray, ks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """AP [Q] and precisions [Q, k] of the queries `asks` among all embeddings [N, D]."""
    z = F.normalize(z.double(), dim=1)  # so that equal images tie and rounding decides nothing
    aps, precisions = [], []
    for some in np.array_split(asks, max(1, -(-len(asks) * len(z) // _CHUNK_FLOATS))):
        order = (z[some] @ z.T).argsort(dim=1, descending=True, stable=True).numpy()
        for query, ranked in zip(some, order, strict=True):
            found = places((own[ranked] == own[query]) & (ranked != query), ranked == query)
            aps.append(average_precision(found))
            precisions.append(precision_at(found, ks))
    return np.array(aps), np.stack(precisions)


def judge_landmarks(
    order: np.ndarray, test: Revisited, ks: Sequence[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """AP [Q'] and precisions [Q', k] for easy, medium and hard; queries without a relevant image
    are left out.

    Args:
        order: int64 [Q, N], database images from the most similar on.
        test: the ground truth.
        ks: places at which precision is taken.
    """
    out = {}
    for name in ("easy", "medium", "hard"):
        aps, precisions = [], []
        for q, ranked in enumerate(order):
            parts = {"easy": test.easy[q], "hard": test.hard[q]}
            wanted = np.concatenate([v for k, v in parts.items() if name in (k, "medium")])
            ignored = [v for k, v in parts.items() if name not in (k, "medium")]
            if len(wanted):
                junk = np.isin(ranked, np.concatenate([test.junk[q], *ignored]))
                found = places(np.isin(ranked, wanted) & ~junk, junk)
                aps.append(average_precision(found))
                precisions.append(precision_at(found, ks))
        out[name] = (np.array(aps), np.array(precisions).reshape(-1, len(ks)))
    return out


def _landmarks(encoder: Encoder, test: Revisited, o: Options) -> Report:
    longest = o.longest or encoder.image_size
    boxes = test.boxes if o.box else None
    queries = whole_images(encoder, test.queries, longest, o.scales, boxes)
    database = whole_images(encoder, test.database, longest, o.scales)
    similar = F.normalize(queries, dim=1) @ F.normalize(database, dim=1).T
    order = similar.argsort(dim=1, descending=True, stable=True).numpy()
    rows = []
    for name, (aps, precisions) in judge_landmarks(order, test, o.k).items():
        if len(aps):
            rows.append(row(name, "mAP", aps))
            rows += [row(name, f"mP@{k}", precisions[:, i]) for i, k in enumerate(o.k)]
    if not rows:
        raise DataError(f"{test.name!r} has no query with a relevant image.")
    best = next((r for r in rows if r["setting"] == "medium"), rows[0])
    note = (
        f"{len(test.queries)} queries, {len(test.database):,} images, longest side {longest} px, "
        f"scales {', '.join(f'{s:g}' for s in o.scales)}, queries "
        f"{'cut to their box' if o.box else 'whole'}"
    )
    return Report(
        protocol="retrieval", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=best, notes=(note,),
    )  # fmt: skip


def whole_images(
    encoder: Encoder,
    source: Source | Items,
    longest: int,
    scales: Sequence[float],
    boxes: np.ndarray | None = None,
) -> Tensor:
    """Embeddings float32 [N, D] of images in their own shape, one by one.

    Args:
        encoder: one that takes images of any size.
        source: the images.
        longest: longest side in pixels; smaller images stay as they are.
        scales: factors of that size whose embeddings are averaged.
        boxes: float [N, 4], what to cut out first, in pixels; None cuts nothing.

    Raises:
        BadImage: an image cannot be read: a ranking without it would be another one.
    """
    out = []
    with progress_bar(f"{encoder.name} on {source.name}", len(source), True) as advance:
        for i in range(len(source)):
            image = Image.fromarray(source.read(i).image)
            if boxes is not None and boxes[i, 2] > boxes[i, 0]:
                image = image.crop(tuple(float(v) for v in boxes[i]))  # type: ignore[arg-type]
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            x = encoder.normalise(np.array(image)[None])
            parts = [encoder.forward(_whole_patches(_scaled(x, s), encoder)) for s in scales]
            out.append(torch.stack(parts).mean(0))
            advance(1)
    return torch.cat(out)


def _scaled(x: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return x
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def _whole_patches(x: Tensor, encoder: Encoder) -> Tensor:
    """Without the right and lower rest that fills no patch, which a convolution leaves out too."""
    p = encoder.backbone.patch_size if "mask" in encoder.backbone.can else 1
    height, width = (s // p * p for s in x.shape[-2:])
    if not height or not width:
        raise DataError(
            f"An image of {x.shape[-1]} x {x.shape[-2]} pixels is smaller than a patch of {p}. "
            "Leave such images out, or use a larger --longest."
        )
    return x[..., :height, :width]


def _groups(test: Source) -> tuple[np.ndarray, str]:
    """A number for each image, equal for those that should find each other, and what it is."""
    if test.groups is not None:
        return np.asarray(test.groups), "group"
    if test.labels is None:
        raise DataError(
            f"{test.name!r} has no groups or labels. Give a table with the columns path and "
            "group, or a folder with a sub-folder for each class."
        )
    return np.asarray(test.labels), "class"

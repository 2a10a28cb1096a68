"""Retrieval: every query ranks a database by cosine similarity; mean average precision.

The protocol of Radenovic et al., "Revisiting Oxford and Paris", 2018, arXiv 1803.11285, as Caron et
al., 2021, use it: the embedding of the full image, its longest side scaled down to `longest`,
averaged over `scales`. For landmarks, the relevant images are the easy ones (easy), the hard ones
(hard) or both (medium); the others are junk and are removed from the list.

Any labelled set can be used as well: every image is a query for the others of its group (the column
`group` of a table; without one, its class).

Differs from the original: the official protocol crops the query to its box, DINO's does not; `box`
selects.
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
from nolabel.data.readable import Readable, describe_skipped, leave_out_unreadable
from nolabel.data.source import Source
from nolabel.data.sources.items import Items
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._ranking import average_precision, precision_at, relevant_ranks, row
from nolabel.protocols.data.revisited import Revisited, find_truth, open_revisited
from nolabel.protocols.report import Report

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

_CHUNK_FLOATS = 2**24  # similarities in memory at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the retrieval protocol."""

    longest: int | None = None  # longest side in pixels, aspect ratio kept; default: centre crop
    scales: tuple[float, ...] = (1.0,)  # embeddings are averaged over them; papers: 1 0.7071 0.5
    box: bool = False  # crop queries to their box, as the official protocol does
    k: tuple[int, ...] = (1, 5, 10)  # precision of the first k
    batch_size: int = 256  # images in a forward pass, if all have one size

    def __post_init__(self) -> None:
        for name, type_ in (("scales", float), ("k", int)):
            as_tuples(self, name)
            value = vars(self)[name]
            object.__setattr__(self, name, tuple(type_(v) for v in value))
            if not value or not all(v > 0 and math.isfinite(v) for v in value):
                raise UsageError(f"{name} must be numbers above 0, got {value!r}.")
        if self.longest is not None and self.longest < 16:
            raise UsageError(f"longest must be at least 16 pixels, got {self.longest}.")
        if self.longest is None and self.scales != (1.0,):
            raise UsageError("Scales need --longest, the side in pixels at scale 1.")
        at_least(self, batch_size=1)


def open_test(test: SourceSpec | Revisited, encoder: Encoder) -> Source | Revisited:
    """Opens a folder in the landmarks' layout, or any source; raises as their functions."""
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
    """Evaluates an encoder by image retrieval with its embedding.

    Args:
        encoder: the encoder.
        train: not used.
        test: a source with groups or labels, or `Revisited`.
        features: features of train and test if they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: no groups, or none with two images; or an image cannot be read.
        UsageError: the encoder takes images of one size only, and `longest` or landmarks are used.
    """
    o = build_options(Options, options)
    if o.longest is not None or isinstance(test, Revisited):
        require(encoder.backbone, ["any_size"], "Retrieval with uncropped images")
    if isinstance(test, Revisited):
        return _landmarks(encoder, test, o)
    if o.box:
        raise UsageError("box needs the landmarks' layout; this set has no boxes. Leave --box out.")
    groups, kind = _groups(test)
    if o.longest is None:
        extracted = features[1] if features else extract(encoder, test, batch_size=o.batch_size)
        z, keys, skipped = extracted.values, extracted.keys.numpy(), extracted.skipped
    else:
        readable, skipped = leave_out_unreadable(test)
        z = embed_uncropped(encoder, readable, o.longest, o.scales)
        keys = readable.indices if isinstance(readable, Readable) else np.arange(len(test))
    groups = groups[keys]
    sizes = np.bincount(groups)
    queries = np.flatnonzero(sizes[groups] > 1)
    if not len(queries):
        raise DataError(
            f"{test.name!r} has no two images of one {kind}, so no query has a right answer."
        )
    aps, precisions = _rank_groups(z, groups, queries, o.k)
    chance = float(((sizes[groups[queries]] - 1) / (len(groups) - 1)).mean())
    rows = [row(f"same {kind}", "mAP", aps)]
    rows += [
        row(f"same {kind}", f"P@{k}", precisions[:, i], **({"chance": chance} if k == 1 else {}))
        for i, k in enumerate(o.k)
    ]
    notes = [*describe_skipped(test.name, skipped)]
    notes += [f"every image is a query for the others of its {kind}, among {len(groups):,} images"]
    if len(queries) < len(groups):
        alone = len(groups) - len(queries)
        notes.append(f"{alone} image(s) are alone in their {kind} and are no queries")
    return Report(
        protocol="retrieval", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=rows[0], notes=tuple(notes),
    )  # fmt: skip


def _rank_groups(
    z: Tensor, groups: np.ndarray, queries: np.ndarray, ks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """AP [Q] and precisions [Q, k] of queries int64 [Q] among embeddings [N, D] of groups [N]."""
    z = F.normalize(z.double(), dim=1)  # float64, so that rounding does not order equal images
    aps, precisions = [], []
    for part in np.array_split(queries, max(1, -(-len(queries) * len(z) // _CHUNK_FLOATS))):
        order = (z[part] @ z.T).argsort(dim=1, descending=True, stable=True).numpy()
        for query, ranked in zip(part, order, strict=True):
            relevant = (groups[ranked] == groups[query]) & (ranked != query)
            ranks = relevant_ranks(relevant, ranked == query)
            aps.append(average_precision(ranks))
            precisions.append(precision_at(ranks, ks))
    return np.array(aps), np.stack(precisions)


def score_landmarks(
    order: np.ndarray, test: Revisited, ks: Sequence[int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Average precision and precision at k of landmarks.

    Args:
        order: int64 [Q, N], indices of database images, most similar first.
        test: the ground truth.
        ks: numbers of first images.

    Returns:
        "easy", "medium" and "hard" -> AP float64 [Q'] and precisions float64 [Q', len(ks)] of the
        Q' queries with a relevant image.
    """
    out = {}
    for name in ("easy", "medium", "hard"):
        aps, precisions = [], []
        for q, ranked in enumerate(order):
            parts = {"easy": test.easy[q], "hard": test.hard[q]}
            relevant = np.concatenate([v for k, v in parts.items() if name in (k, "medium")])
            ignored = [v for k, v in parts.items() if name not in (k, "medium")]
            if len(relevant):
                junk = np.isin(ranked, np.concatenate([test.junk[q], *ignored]))
                ranks = relevant_ranks(np.isin(ranked, relevant) & ~junk, junk)
                aps.append(average_precision(ranks))
                precisions.append(precision_at(ranks, ks))
        out[name] = (np.array(aps), np.array(precisions).reshape(-1, len(ks)))
    return out


def _landmarks(encoder: Encoder, test: Revisited, o: Options) -> Report:
    longest = o.longest or encoder.image_size
    boxes = test.boxes if o.box else None
    queries = embed_uncropped(encoder, test.queries, longest, o.scales, boxes)
    database = embed_uncropped(encoder, test.database, longest, o.scales)
    similarity = F.normalize(queries, dim=1) @ F.normalize(database, dim=1).T
    order = similarity.argsort(dim=1, descending=True, stable=True).numpy()
    rows = []
    for name, (aps, precisions) in score_landmarks(order, test, o.k).items():
        if len(aps):
            rows.append(row(name, "mAP", aps))
            rows += [row(name, f"mP@{k}", precisions[:, i]) for i, k in enumerate(o.k)]
    if not rows:
        raise DataError(f"{test.name!r} has no query with a relevant image.")
    best = next((r for r in rows if r["setting"] == "medium"), rows[0])
    note = (
        f"{len(test.queries)} queries, {len(test.database):,} images, longest side {longest} px, "
        f"scales {', '.join(f'{s:g}' for s in o.scales)}, queries "
        f"{'cropped to their box' if o.box else 'whole'}"
    )
    return Report(
        protocol="retrieval", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=best, notes=(note,),
    )  # fmt: skip


def embed_uncropped(
    encoder: Encoder,
    source: Source | Items,
    longest: int,
    scales: Sequence[float],
    boxes: np.ndarray | None = None,
) -> Tensor:
    """Embeds images with their own aspect ratio, one by one.

    Args:
        encoder: one that takes images of any size.
        source: the images.
        longest: longest side in pixels; smaller images are not enlarged.
        scales: factors of that size; embeddings are averaged over them.
        boxes: float [N, 4], left, top, right and bottom in pixels of the crop; None crops nothing.

    Returns:
        float32 [N, D] on the CPU.

    Raises:
        DataError: an image cannot be read (a benchmark without it is another one), or is smaller
            than a patch.
    """
    out = []
    with progress_bar(f"{encoder.name} on {source.name}", len(source), True) as advance:
        for i in range(len(source)):
            try:
                image = Image.fromarray(source.read(i).image)
            except BadImage as error:
                raise DataError(f"An image of {source.name!r} cannot be read: {error}.") from None
            if boxes is not None and boxes[i, 2] > boxes[i, 0]:
                left, top, right, bottom = (float(v) for v in boxes[i])
                image = image.crop((left, top, right, bottom))
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            x = encoder.normalise(np.array(image)[None])
            parts = [encoder.forward(_crop_to_patches(_rescale(x, s), encoder)) for s in scales]
            out.append(torch.stack(parts).mean(0))
            advance(1)
    return torch.cat(out)


def _rescale(x: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return x
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def _crop_to_patches(x: Tensor, encoder: Encoder) -> Tensor:
    """Crops images [1, C, H, W] at the right and bottom to a multiple of the patch size."""
    p = encoder.backbone.patch_size if "mask" in encoder.backbone.can else 1
    height, width = (s // p * p for s in x.shape[-2:])
    if not height or not width:
        raise DataError(
            f"An image of {x.shape[-1]} x {x.shape[-2]} pixels is smaller than a patch of {p}. "
            "Leave such images out, or use a larger --longest."
        )
    return x[..., :height, :width]


def _groups(test: Source) -> tuple[np.ndarray, str]:
    """The group of each image, int64 [N], and "group" or "class", where it comes from."""
    if test.groups is not None:
        return np.asarray(test.groups), "group"
    if test.labels is None:
        raise DataError(
            f"{test.name!r} has no groups or labels. Give a table with the columns path and "
            "group, or a folder with a sub-folder for each class."
        )
    return np.asarray(test.labels), "class"

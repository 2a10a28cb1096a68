"""Copy detection: does an altered copy find its original among many images?

Douze et al., "Evaluation of GIST descriptors for web-scale image search", 2009 (Copydays), by the
protocol of Caron et al., 2021: the class token beside the generalised mean (power 4) of the patches
of the image squeezed to a square, whitened on other images, cosine similarity; average precision
by trapezoids over the first 20 found.

Two kinds of data: a folder in the layout of Copydays (`original`, and folders of copies whose
names begin with the same four digits), with --distractors; or any set, whose images are altered
here: cut, compressed (JPEG 75 to 3), blurred, pasted into another picture, written upon. Then the
other images of the set are the distractors; of creatures, each original also has a near-duplicate
that is no copy: the same creature a moment later.

Beside the encoder stands a perceptual hash (the signs of the 8 x 8 lowest frequencies of the grey
picture at 32 x 32, but for the constant, against their median), which needs no training.

Differs from the original: whitening subtracts the mean before the covariance, which the original
forgets; `--centred False` does as it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from nolabel.backbones.base import require
from nolabel.data.open import open_source
from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.data.sources.items import Items
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.protocols._options import at_least, build
from nolabel.protocols._ranking import average_precision, row
from nolabel.protocols.data.attacks import ATTACKS, attacked
from nolabel.protocols.report import Report

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

FOUND = 20  # images of the list that count
ORIGINALS, DISTRACTORS, WHITENING = 100, 1000, 1000  # images of a set that are used, at most


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the copies protocol."""

    side: int | None = None  # images are squeezed to this square; default 320, below 96 px twice
    power: float = 4.0  # of the generalised mean of the patches
    whiten: bool = True  # by the mean and covariance of images that are neither copy nor original
    centred: bool = True  # the covariance is that of centred features
    distractors: str = ""  # SRC of more images in the database, for Copydays' layout
    seed: int = 0  # of the attacks
    batch_size: int = 64  # images embedded at once

    def __post_init__(self) -> None:
        at_least(self, side=16, power=1, batch_size=1)


@dataclass(frozen=True)
class Copies:
    """Queries by kind of attack, the database, and images to whiten on.

    Attributes:
        name: of the set.
        queries: attack -> images uint8 [H, W, 3] and the numbers of their originals.
        database: images; the originals come first.
        others: images of neither.
    """

    name: str
    queries: dict[str, tuple[list[np.ndarray], np.ndarray]]
    database: list[np.ndarray]
    others: list[np.ndarray]


def open_test(test: SourceSpec | Copies, encoder: Encoder) -> Copies | Path | Source:
    """A folder in Copydays' layout as its path, or a source."""
    if isinstance(test, Copies):
        return test
    if isinstance(test, str | os.PathLike) and (Path(test) / "original").is_dir():
        return Path(test)
    return open_source(test, image_size=encoder.image_size, split_default="test")


def run_copies(
    encoder: Encoder,
    train: Source | None,
    test: Copies | Path | Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder by the originals that altered copies find.

    Args:
        encoder: one that takes images of any size.
        train: not used.
        test: what `open_test` returns.
        features: not used.
        **options: fields of `Options`.

    Raises:
        DataError: too few images, or one that cannot be read.
        UsageError: the encoder takes images of one size only.
    """
    o = build(Options, options)
    require(encoder.backbone, ["any_size"], "Copy detection")
    side = o.side or (320 if encoder.image_size >= 96 else 2 * encoder.image_size)
    if isinstance(test, Copies):
        data = test
    elif isinstance(test, Path):
        data = copydays(test, o.distractors)
    else:
        data = altered(test, o.seed)
    total = len(data.database) + len(data.others) + sum(len(q) for q, _ in data.queries.values())
    with progress_bar(f"{encoder.name} on {data.name}", total, True) as advance:

        def described(images: list[np.ndarray]) -> Tensor:
            return describe(encoder, images, side, o.power, o.batch_size, advance)

        prepare = whitening(described(data.others), o.centred) if o.whiten else _unit
        base = prepare(described(data.database))
        hashes = np.stack([perceptual_hash(x) for x in data.database])
        scores: dict[str, np.ndarray] = {}
        hashed: dict[str, np.ndarray] = {}
        for name, (images, own) in data.queries.items():
            scores[name] = found((prepare(described(images)) @ base.T).numpy(), own)
            asked = np.stack([perceptual_hash(x) for x in images])
            # The more equal signs the more alike; ties in the order of the database.
            hashed[name] = found(asked @ hashes.T, own)
    rows = [row(name, "mAP", values) for name, values in scores.items()]
    every = np.concatenate(list(scores.values()))
    rows.append(row("all", "mAP", every))
    rows.append(row("all, perceptual hash", "mAP", np.concatenate(list(hashed.values()))))
    rows += [row(f"{name}, perceptual hash", "mAP", values) for name, values in hashed.items()]
    best = next(r for r in rows if r["setting"] == ("strong" if "strong" in scores else "all"))
    white = f"whitened on {len(data.others):,} other images" if o.whiten else "not whitened"
    note = (
        f"{len(data.database):,} images in the database, the first {FOUND} of the list count, "
        f"squeezed to {side} px, {white}"
    )
    return Report(
        protocol="copies", encoder=encoder.name, train="", test=data.name, rows=tuple(rows),
        best=best, notes=(note,),
    )  # fmt: skip


def found(similar: np.ndarray, own: np.ndarray) -> np.ndarray:
    """AP [Q] of similarities [Q, N] when image own[q] is the only right one; 0 beyond `FOUND`."""
    order = np.argsort(-similar, axis=1, kind="stable")[:, :FOUND]
    at = [np.flatnonzero(ranked == right) for ranked, right in zip(order, own, strict=True)]
    return np.array([average_precision(a) if len(a) else 0.0 for a in at])


def altered(source: Source, seed: int) -> Copies:
    """Originals from a set, altered, among its other images."""
    n = len(source)
    if n < 60:
        raise DataError(f"{source.name!r} has {n} images; copies need 60 or more.")
    first = min(ORIGINALS, n // 6)
    second = min(DISTRACTORS, n // 3)
    third = min(WHITENING, n - first - second)
    images = [_read(source, i) for i in range(first + second + third)]
    originals = images[:first]
    near = _moments_later(source, first)
    queries = {
        name: ([attacked(x, name, (seed, k, i)) for i, x in enumerate(originals)], np.arange(first))
        for k, name in enumerate(ATTACKS)
    }
    return Copies(
        f"{source.name} (altered)", queries, originals + near + images[first : first + second],
        images[first + second :],
    )  # fmt: skip


def _moments_later(source: Source, count: int) -> list[np.ndarray]:
    """Of creatures: the same ones, moved a little. Others have none."""
    from nolabel.data.creatures.videos import draw_video
    from nolabel.data.creatures.world import Creatures

    if not isinstance(source, Creatures):
        return []
    size, split, seed = source.size, source.split, source.seed
    return [
        draw_video(i, frames=5, size=size, creatures=1, split=split, seed=seed)[0][4]
        for i in range(count)
    ]


def copydays(folder: Path, distractors: str) -> Copies:
    """A folder with `original` and folders of copies, which may have folders of strengths."""
    originals = sorted(p for p in (folder / "original").iterdir() if p.is_file())
    numbers = {p.stem[:4]: i for i, p in enumerate(originals)}
    queries: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    for kind in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "original"):
        groups = sorted(p for p in kind.iterdir() if p.is_dir()) or [kind]
        for group in groups:
            files = sorted(p for p in group.iterdir() if p.is_file())
            strange = [p.name for p in files if p.stem[:4] not in numbers]
            if strange:
                raise DataError(
                    f"{str(group)!r} has {len(strange)} images whose first four digits no original "
                    f"has, first {strange[0]!r}."
                )
            name = kind.name if group == kind else f"{kind.name} {group.name}"
            source = Items([str(p) for p in files], name)
            own = np.array([numbers[p.stem[:4]] for p in files])
            if len(files):
                queries[name] = ([_read(source, i) for i in range(len(files))], own)
    if not queries or not originals:
        raise DataError(f"{str(folder)!r} has no copies beside its folder 'original'.")
    source = Items([str(p) for p in originals], "original")
    base = [_read(source, i) for i in range(len(originals))]
    more = open_source(distractors) if distractors else None
    rest = [_read(more, i) for i in range(len(more))] if more is not None else []
    half = len(rest) // 2
    if not half:
        raise UsageError(
            "Copydays needs --distractors, a SRC of other images: half of them fill the database, "
            "the other half serve to whiten."
        )
    return Copies(str(folder), queries, base + rest[:half], rest[half:])


def _read(source: Source, i: int) -> np.ndarray:
    try:
        return source.read(i).image
    except BadImage as error:
        raise DataError(f"An image cannot be read: {error}.") from None


def describe(
    encoder: Encoder,
    images: list[np.ndarray],
    side: int,
    power: float,
    batch: int,
    advance: Callable[[int], None],
) -> Tensor:
    """Class token (if there is one) and generalised mean of the patches, float32 [N, D or 2 D]."""
    p = encoder.backbone.patch_size
    side = max(side // p, 1) * p
    out = []
    for start in range(0, len(images), batch):
        some = [
            np.array(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC))
            for x in images[start : start + batch]
        ]
        x = encoder.normalise(np.stack(some))
        with encoder.evaluating():
            t = encoder.backbone.tokens(x)
            pooled = t.patches.float().clamp_min(1e-6).pow(power).mean(1).pow(1 / power)
            has = t.prefix is not None and t.prefix.shape[1]
            parts = [t.prefix[:, 0].float(), pooled] if has and t.prefix is not None else [pooled]
            out.append(torch.cat(parts, 1).cpu())
        advance(len(some))
    return torch.cat(out).clone()


def whitening(z: Tensor, centred: bool) -> Callable[[Tensor], Tensor]:
    """From features of other images [N, D]: a function that subtracts their mean, turns and scales
    by their covariance (directions below 1e-5 of the strongest count as that), and makes unit
    length."""
    z = z.double()
    mean = z.mean(0)
    own = z - mean if centred else z
    values, vectors = torch.linalg.eigh(own.T @ own / len(z))
    scale = values.clamp_min(1e-5 * float(values.max())).rsqrt()

    def prepare(x: Tensor) -> Tensor:
        return F.normalize(((x.double() - mean) @ vectors) * scale, dim=1).float()

    return prepare


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """63 signs, float32 of +1 and -1, of an image uint8 [H, W, 3]."""
    grey = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, dtype=np.float64), norm="ortho")[:8, :8].ravel()[1:]
    return np.where(low > np.median(low), 1.0, -1.0).astype(np.float32)

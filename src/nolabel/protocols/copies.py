"""Copy detection: an altered copy of an image is the query, its original the only right answer.

Douze et al., "Evaluation of GIST descriptors for web-scale image search", 2009 (Copydays), by the
protocol of Caron et al., 2021: the image is resized to a square; the class token and the
generalised mean (GeM, power 4) of the patches are concatenated and whitened on other images; cosine
similarity; average precision by the trapezoidal rule over the first 20 of the list.

Two kinds of data: a folder in the layout of Copydays (`original`, and folders of copies whose
names begin with the same four digits), with --distractors; or any set, whose images are altered
here: cropped, compressed (JPEG 75 to 3), blurred, pasted onto a background, covered with text. Then
the other images of the set are the distractors; with creatures, each original also has a
near-duplicate that is not a copy: a later frame of the same creature.

A perceptual hash is the baseline: signs of the 8 x 8 lowest DCT frequencies of the grey image at
32 x 32, without the constant one, relative to their median.

Differs from the original: the covariance of the whitening is that of centred features, while the
original does not subtract the mean; `--centred False` is the original's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
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
from nolabel.data.read_ahead import read_ahead
from nolabel.data.readable import Skipped, describe_skipped, leave_out_unreadable
from nolabel.data.source import Source, Subset
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.protocols._options import at_least, build_options
from nolabel.protocols._ranking import average_precision, row
from nolabel.protocols.data.copies import Copies, alter, copydays
from nolabel.protocols.report import Report

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

_READ = 8000  # images of a set that are looked at
LIST_LENGTH = 20  # of the ranked list; ranks beyond it score 0
AHEAD_BYTES = 64 * 2**20  # of resized images that wait for the network


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the copies protocol."""

    side: int | None = None  # of the square in pixels; default 320, below 96 px twice the encoder's
    power: float = 4.0  # of the generalised mean of the patches
    whiten: bool = True  # by statistics of images that are neither copy nor original
    whiten_on: str = ""  # SRC of these images; default: half of the distractors, or the set's rest
    centred: bool = True  # the covariance is that of centred features
    distractors: str = ""  # SRC of more images in the database, for Copydays' layout
    seed: int = 0  # of the attacks
    batch_size: int = 64  # images in a forward pass

    def __post_init__(self) -> None:
        at_least(self, side=16, power=1, batch_size=1)


def open_test(test: SourceSpec | Copies, encoder: Encoder) -> Copies | Path | Source:
    """Returns the path of a folder in the layout of Copydays, or opens a source."""
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
    """Evaluates an encoder by retrieval of the originals of altered copies.

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
    o = build_options(Options, options)
    require(encoder.backbone, ["any_size"], "Copy detection")
    side = o.side or (320 if encoder.image_size >= 96 else 2 * encoder.image_size)
    skipped: Skipped = ()
    if isinstance(test, Copies):
        data = test
    elif isinstance(test, Path):
        data = copydays(test, o.distractors, o.whiten_on)
    else:
        readable, skipped = leave_out_unreadable(Subset(test, np.arange(min(len(test), _READ))))
        data = alter(readable if skipped else test, o.seed, o.whiten_on)
    count = sum(len(images) for images in data.database)
    total = count + len(data.others) + sum(len(q) for q, _ in data.queries.values())
    with progress_bar(f"{encoder.name} on {data.name}", total, True) as advance:

        def embed_images(images: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray]:
            return describe(encoder, images, side, o.power, o.batch_size, advance)

        prepare = whitening(embed_images(data.others)[0], o.centred) if o.whiten else _normalise
        sets = [embed_images(images) for images in data.database if len(images)]
        database = prepare(torch.cat([z for z, _ in sets]))
        database_hashes = np.concatenate([h for _, h in sets])
        scores: dict[str, np.ndarray] = {}
        hash_scores: dict[str, np.ndarray] = {}
        for name, (images, targets) in data.queries.items():
            z, hashes = embed_images(images)
            scores[name] = average_precisions((prepare(z) @ database.T).numpy(), targets)
            # Product of signs = 63 - 2 * Hamming distance; ties keep the order of the database.
            hash_scores[name] = average_precisions(hashes @ database_hashes.T, targets)
    rows = [row(name, "mAP", values) for name, values in scores.items()]
    all_scores = np.concatenate(list(scores.values()))
    rows.append(row("all", "mAP", all_scores))
    rows.append(row("all, perceptual hash", "mAP", np.concatenate(list(hash_scores.values()))))
    rows += [row(f"{name}, perceptual hash", "mAP", values) for name, values in hash_scores.items()]
    best = next(r for r in rows if r["setting"] == ("strong" if "strong" in scores else "all"))
    whitened = f"whitened on {len(data.others):,} other images" if o.whiten else "not whitened"
    note = (
        f"{count:,} images in the database, first {LIST_LENGTH} of the list, "
        f"resized to a square of {side} px, {whitened}"
    )
    return Report(
        protocol="copies", encoder=encoder.name, train="", test=data.name, rows=tuple(rows),
        best=best, notes=(*describe_skipped(data.name, skipped), note),
    )  # fmt: skip


def average_precisions(similarity: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of queries with a single right image; 0 beyond `LIST_LENGTH`.

    Args:
        similarity: float [Q, N], to the images of the database.
        targets: int64 [Q], index of the right image.

    Returns:
        float64 [Q].
    """
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :LIST_LENGTH]
    ranks = [
        np.flatnonzero(ranked == target) for ranked, target in zip(order, targets, strict=True)
    ]
    return np.array([average_precision(a) if len(a) else 0.0 for a in ranks])


def describe(
    encoder: Encoder,
    images: Sequence[np.ndarray],
    side: int,
    power: float,
    batch: int,
    advance: Callable[[int], None],
) -> tuple[Tensor, np.ndarray]:
    """Descriptors and perceptual hashes of images, which are asked for one after the other.

    A descriptor is the class token (if there is one) and the generalised mean (GeM) of the patches.

    Args:
        encoder: one that takes images of any size.
        images: N images uint8 [H, W, 3].
        side: side in pixels of the square to which they are resized, rounded down to whole patches.
        power: power of the mean.
        batch: images in a forward pass.
        advance: called with the number of images of each batch.

    Returns:
        float32 [N, D] or [N, 2 D] on the CPU, and float32 [N, 63].
    """
    p = encoder.backbone.patch_size
    side = max(side // p, 1) * p

    def prepare(i: int) -> tuple[np.ndarray, np.ndarray]:
        image = images[i]
        small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        return np.array(small), perceptual_hash(image)

    prepared = read_ahead(prepare, range(len(images)), lambda r: r[0].nbytes, max_bytes=AHEAD_BYTES)
    out, hashes = [], []
    with contextlib.closing(prepared):
        while rows := list(itertools.islice(prepared, batch)):
            x = encoder.normalise(np.stack([pixels for pixels, _ in rows]))
            hashes += [h for _, h in rows]
            with encoder.evaluating():
                t = encoder.backbone.tokens(x)
                pooled = t.patches.float().clamp_min(1e-6).pow(power).mean(1).pow(1 / power)
                if t.prefix is not None and t.prefix.shape[1]:
                    pooled = torch.cat([t.prefix[:, 0].float(), pooled], 1)
                out.append(pooled.cpu())
            advance(len(rows))
    return torch.cat(out).clone(), np.stack(hashes)


def whitening(z: Tensor, centred: bool) -> Callable[[Tensor], Tensor]:
    """Fits a PCA whitening.

    Args:
        z: float [N, D], features of other images.
        centred: whether to subtract their mean before the covariance.

    Returns:
        Function that subtracts the mean, rotates to the eigenvectors of the covariance, divides by
        the roots of the eigenvalues (at least 1e-5 of the largest) and normalises to unit length:
        float [M, D] to float32 [M, D].
    """
    z = z.double()
    mean = z.mean(0)
    features = z - mean if centred else z
    values, vectors = torch.linalg.eigh(features.T @ features / len(z))
    scale = values.clamp_min(1e-5 * float(values.max())).rsqrt()

    def prepare(x: Tensor) -> Tensor:
        return F.normalize(((x.double() - mean) @ vectors) * scale, dim=1).float()

    return prepare


def _normalise(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Perceptual hash of an image uint8 [H, W, 3]: float32 [63] of +1 and -1."""
    grey = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, dtype=np.float64), norm="ortho")[:8, :8].ravel()[1:]
    return np.where(low > np.median(low), 1.0, -1.0).astype(np.float32)

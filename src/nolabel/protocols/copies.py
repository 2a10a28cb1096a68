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
from nolabel.protocols._options import at_least, build_options
from nolabel.protocols._ranking import average_precision, row
from nolabel.protocols.data.attacks import ATTACKS, attacked
from nolabel.protocols.report import Report

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec

LIST_LENGTH = 20  # of the ranked list; ranks beyond it score 0
ORIGINALS, DISTRACTORS, WHITENING = 100, 1000, 1000  # largest numbers of images used


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the copies protocol."""

    side: int | None = None  # of the square in pixels; default 320, below 96 px twice the encoder's
    power: float = 4.0  # of the generalised mean of the patches
    whiten: bool = True  # by statistics of images that are neither copy nor original
    centred: bool = True  # the covariance is that of centred features
    distractors: str = ""  # SRC of more images in the database, for Copydays' layout
    seed: int = 0  # of the attacks
    batch_size: int = 64  # images in a forward pass

    def __post_init__(self) -> None:
        at_least(self, side=16, power=1, batch_size=1)


@dataclass(frozen=True)
class Copies:
    """Queries by attack, the database, and images for the whitening.

    Attributes:
        name: name of the set.
        queries: attack -> images uint8 [H, W, 3], and int64 [Q], the index in the database of each
            one's original.
        database: images uint8 [H, W, 3]; the originals come first.
        others: images uint8 [H, W, 3] for the whitening.
    """

    name: str
    queries: dict[str, tuple[list[np.ndarray], np.ndarray]]
    database: list[np.ndarray]
    others: list[np.ndarray]


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
    if isinstance(test, Copies):
        data = test
    elif isinstance(test, Path):
        data = copydays(test, o.distractors)
    else:
        data = alter(test, o.seed)
    total = len(data.database) + len(data.others) + sum(len(q) for q, _ in data.queries.values())
    with progress_bar(f"{encoder.name} on {data.name}", total, True) as advance:

        def embed_images(images: list[np.ndarray]) -> Tensor:
            return describe(encoder, images, side, o.power, o.batch_size, advance)

        prepare = whitening(embed_images(data.others), o.centred) if o.whiten else _normalise
        database = prepare(embed_images(data.database))
        database_hashes = np.stack([perceptual_hash(x) for x in data.database])
        scores: dict[str, np.ndarray] = {}
        hash_scores: dict[str, np.ndarray] = {}
        for name, (images, targets) in data.queries.items():
            scores[name] = average_precisions(
                (prepare(embed_images(images)) @ database.T).numpy(), targets
            )
            query_hashes = np.stack([perceptual_hash(x) for x in images])
            # Product of signs = 63 - 2 * Hamming distance; ties keep the order of the database.
            hash_scores[name] = average_precisions(query_hashes @ database_hashes.T, targets)
    rows = [row(name, "mAP", values) for name, values in scores.items()]
    all_scores = np.concatenate(list(scores.values()))
    rows.append(row("all", "mAP", all_scores))
    rows.append(row("all, perceptual hash", "mAP", np.concatenate(list(hash_scores.values()))))
    rows += [row(f"{name}, perceptual hash", "mAP", values) for name, values in hash_scores.items()]
    best = next(r for r in rows if r["setting"] == ("strong" if "strong" in scores else "all"))
    whitened = f"whitened on {len(data.others):,} other images" if o.whiten else "not whitened"
    note = (
        f"{len(data.database):,} images in the database, first {LIST_LENGTH} of the list, "
        f"resized to a square of {side} px, {whitened}"
    )
    return Report(
        protocol="copies", encoder=encoder.name, train="", test=data.name, rows=tuple(rows),
        best=best, notes=(note,),
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


def alter(source: Source, seed: int) -> Copies:
    """Makes queries from images of a set by every attack; its other images are distractors.

    Args:
        source: the images.
        seed: seed of the attacks.

    Raises:
        DataError: fewer than 60 images, or one that cannot be read.
    """
    n = len(source)
    if n < 60:
        raise DataError(f"{source.name!r} has {n} images; copy detection needs 60 or more.")
    original_count = min(ORIGINALS, n // 6)
    distractor_count = min(DISTRACTORS, n // 3)
    whitening_count = min(WHITENING, n - original_count - distractor_count)
    images = [_read(source, i) for i in range(original_count + distractor_count + whitening_count)]
    originals = images[:original_count]
    near_duplicates = _later_frames(source, original_count)
    queries = {
        name: (
            [attacked(x, name, (seed, k, i)) for i, x in enumerate(originals)],
            np.arange(original_count),
        )
        for k, name in enumerate(ATTACKS)
    }
    rest = images[original_count:]
    database = originals + near_duplicates + rest[:distractor_count]
    return Copies(f"{source.name} (altered)", queries, database, rest[distractor_count:])


def _later_frames(source: Source, count: int) -> list[np.ndarray]:
    """Later frames of the first `count` creatures; none for other sources."""
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
    """Opens a folder in the layout of Copydays.

    Args:
        folder: has the folder `original`, and folders of copies, which may have a folder for each
            strength.
        distractors: SRC of other images: half of them for the database, half for the whitening.

    Raises:
        DataError: no copies, copies without original, or an image that cannot be read.
        UsageError: no distractors.
    """
    originals = sorted(p for p in (folder / "original").iterdir() if p.is_file())
    numbers = {p.stem[:4]: i for i, p in enumerate(originals)}
    queries: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    for attack_folder in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "original"):
        groups = sorted(p for p in attack_folder.iterdir() if p.is_dir()) or [attack_folder]
        for group in groups:
            files = sorted(p for p in group.iterdir() if p.is_file())
            unmatched = [p.name for p in files if p.stem[:4] not in numbers]
            if unmatched:
                raise DataError(
                    f"{str(group)!r} has {len(unmatched)} images whose first four digits no "
                    f"original has, first {unmatched[0]!r}. Copies are named after their originals."
                )
            name = (
                attack_folder.name
                if group == attack_folder
                else f"{attack_folder.name} {group.name}"
            )
            source = Items([str(p) for p in files], name)
            targets = np.array([numbers[p.stem[:4]] for p in files])
            if len(files):
                queries[name] = ([_read(source, i) for i in range(len(files))], targets)
    if not queries or not originals:
        raise DataError(f"{str(folder)!r} has no copies beside its folder 'original'.")
    source = Items([str(p) for p in originals], "original")
    database = [_read(source, i) for i in range(len(originals))]
    others: list[np.ndarray] = []
    if distractors:
        distractor_source = open_source(distractors)
        others = [_read(distractor_source, i) for i in range(len(distractor_source))]
    half = len(others) // 2
    if not half:
        raise UsageError(
            "Copydays needs --distractors, a SRC of other images: half of them are added to the "
            "database, the other half is for the whitening."
        )
    return Copies(str(folder), queries, database + others[:half], others[half:])


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
    """Descriptors: class token (if there is one) and generalised mean (GeM) of the patches.

    Args:
        encoder: one that takes images of any size.
        images: N images uint8 [H, W, 3].
        side: side in pixels of the square to which they are resized, rounded down to whole patches.
        power: power of the mean.
        batch: images in a forward pass.
        advance: called with the number of images of each batch.

    Returns:
        float32 [N, D] or [N, 2 D] on the CPU.
    """
    p = encoder.backbone.patch_size
    side = max(side // p, 1) * p
    out = []
    for start in range(0, len(images), batch):
        resized = [
            np.array(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC))
            for x in images[start : start + batch]
        ]
        x = encoder.normalise(np.stack(resized))
        with encoder.evaluating():
            t = encoder.backbone.tokens(x)
            pooled = t.patches.float().clamp_min(1e-6).pow(power).mean(1).pow(1 / power)
            if t.prefix is not None and t.prefix.shape[1]:
                pooled = torch.cat([t.prefix[:, 0].float(), pooled], 1)
            out.append(pooled.cpu())
        advance(len(resized))
    return torch.cat(out).clone()


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

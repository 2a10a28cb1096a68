"""A linear classifier on frozen features; settings are swept and chosen on held-out images.

    classifier sgd       cross-entropy, momentum 0.9, cosine, all learning rates in parallel
                         (Oquab et al., DINOv2, 2023; Caron et al., DINO, 2021)
    classifier lars      the same with LARS, after BatchNorm without affine parameters (He et al.,
                         Masked Autoencoders, 2022)
    classifier logistic  logistic regression, its penalty swept (DINOv2's other protocol)

    --blocks 1 4 --pools class class+mean   also sweeps what the features are, as DINOv2 does

Differs from all: features are computed once, of centre crops or of --augmented random crops and
flips of each training image, while the papers draw a new crop in every epoch; BatchNorm uses the
statistics of the training set; the setting is chosen on a tenth of train and the classifier is
trained again on all of it, while DINOv2 chooses on the validation set that it reports.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nolabel.data.readable import describe_skipped
from nolabel.data.source import Source, Subset, require_labels
from nolabel.data.split import split
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.errors import DataError, UsageError, unknown
from nolabel.protocols._heads import CHUNK_FLOATS, Heads, fit_heads, score_heads
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._scores import (
    TOP,
    accuracy_rows,
    class_names,
    labelled_features,
    match_labels,
)
from nolabel.protocols.block_features import POOLS, BlockFeatures, extract_block_features
from nolabel.protocols.report import Report

__all__ = ["Heads", "Options", "fit_heads", "fit_best_rate", "run_linear", "score_heads"]

CLASSIFIERS = ("sgd", "lars", "logistic")
RATES = {
    "sgd": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "lars": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "logistic": tuple(10.0**v for v in range(-6, 6)),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the linear protocol."""

    classifier: str = "sgd"  # or lars, logistic
    # Learning rates to try, not scaled by the batch size; of logistic, strengths C (1 / penalty).
    # None is a default range for the classifier.
    lr: tuple[float, ...] | None = None

    # Numbers of last blocks whose class tokens are concatenated, swept.
    blocks: tuple[int, ...] = (1,)

    pools: tuple[str, ...] = ("auto",)  # auto, class, class+mean, mean; swept
    augmented: int = 0  # random crops and flips of each training image; 0: the centre crop
    epochs: int = 100  # passes over the features
    features_per_step: int = 256  # batch size of the classifier
    batchnorm: bool = True  # standardise every feature first (MAE)
    held_out: float = 0.1  # share of every class of train on which the setting is chosen
    seed: int = 0  # of initial weights, order, split and crops
    batch_size: int = 256  # images in a forward pass

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise unknown("classifier", self.classifier, CLASSIFIERS)
        if self.lr is not None:
            rates = (self.lr,) if isinstance(self.lr, int | float) else tuple(self.lr)
            object.__setattr__(self, "lr", tuple(sorted({float(v) for v in rates})))
            if not rates or not all(v > 0 and math.isfinite(v) for v in rates):
                raise UsageError(f"lr must be numbers above 0, got {rates!r}.")
        as_tuples(self, "blocks", "pools")
        for pool in self.pools:
            if pool not in POOLS:
                raise unknown("pool", pool, POOLS)
        if not self.blocks or not self.pools:
            raise UsageError(
                f"blocks and pools need one value or more each, got {self.blocks!r} and "
                f"{self.pools!r}."
            )
        at_least(self, epochs=1, features_per_step=1, batch_size=1)
        at_least(self, augmented=0)
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out must lie between 0 and 1, got {self.held_out}.")

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates to try, ascending: `lr`, or the default range of the classifier."""
        return tuple(sorted(RATES[self.classifier])) if self.lr is None else self.lr

    @property
    def own_embedding(self) -> bool:
        """Whether the features are the encoder's own embeddings of centre crops."""
        return self.blocks == (1,) and self.pools == ("auto",) and not self.augmented


class Setting(NamedTuple):
    """One combination of the sweep: features and learning rate (or C)."""

    blocks: int
    pool: str
    lr: float

    def label(self, o: Options) -> str:
        """Name of the setting in the report."""
        name = "C" if o.classifier == "logistic" else "lr"
        parts = [f"{name}={self.lr:g}"]
        if len(o.blocks) > 1 or o.blocks != (1,):
            parts.append(f"{self.blocks} blocks")
        if o.pools != ("auto",):
            parts.append(self.pool)
        return ", ".join(parts)


class _SweptFeatures(NamedTuple):
    """Features of every combination of blocks and pools.

    Attributes:
        train: (blocks, pool) -> float32 [M, F], crop by crop.
        test: (blocks, pool) -> float32 [N, F].
        keys: int64 [M], indices of the training images.
        labels: int64 [M], of train.
        truth: int64 [N], of test.
        names: names of the classes.
        notes: on images that could not be read.
    """

    train: dict[tuple[int, str], Tensor]
    test: dict[tuple[int, str], Tensor]
    keys: Tensor
    labels: Tensor
    truth: Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...]


def run_linear(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Evaluates an encoder by a linear classifier on its frozen features.

    Args:
        encoder: the encoder.
        train: labelled images to train on.
        test: labelled images of the same classes; used once, at the end.
        features: features of train and test if they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`; or no class has two images in train.
        UsageError: more blocks than the network has, or blocks of different widths.
    """
    o = build_options(Options, options)
    device = encoder.device
    if o.own_embedding:
        a, b, names, notes = labelled_features(encoder, train, test, features, o.batch_size)
        assert a.labels is not None and b.labels is not None  # noqa: S101
        swept = _SweptFeatures(
            {(1, "auto"): a.values}, {(1, "auto"): b.values}, a.keys, a.labels, b.labels, names,
            notes,
        )  # fmt: skip
    else:
        swept = _swept_features(encoder, train, test, o)
    classes, labels = len(swept.names), swept.labels.to(device)
    x = {k: v.to(device) for k, v in swept.train.items()}
    best, choice = _choose_setting(x, labels, swept.keys, train, o, classes)
    z = swept.test[best.blocks, best.pool].to(device)
    predicted = _predict(x[best.blocks, best.pool], labels, z, best.lr, o, classes)
    rows = accuracy_rows(best.label(o), predicted, swept.truth, classes)
    crops = f"{o.augmented} random crops of each training image"
    views = crops if o.augmented else "centre crops, without augmentation"
    deviation = (
        f"features of {views}, computed once: the papers draw a crop in every epoch, so their "
        "figures are not directly comparable"
    )
    return Report(
        protocol="linear", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=rows[0], notes=(*swept.notes, *choice, deviation),
    )  # fmt: skip


def _swept_features(encoder: Encoder, train: Source, test: Source, o: Options) -> _SweptFeatures:
    # Labels first: fail before the features are computed.
    labels, test_labels = require_labels(train), match_labels(train, test)

    def extract(source: Source, crops: int) -> BlockFeatures:
        return extract_block_features(
            encoder, source, blocks=max(o.blocks), crops=crops, seed=o.seed, batch_size=o.batch_size
        )

    def combinations(features: BlockFeatures) -> dict[tuple[int, str], Tensor]:
        return {(n, p): features.features(n, p) for n in o.blocks for p in o.pools}

    a, b = extract(train, o.augmented), extract(test, 0)
    notes = (
        *describe_skipped(train.name, a.skipped),
        *describe_skipped(test.name, b.skipped),
    )
    return _SweptFeatures(
        combinations(a), combinations(b), a.keys, torch.from_numpy(labels.astype("i8"))[a.keys],
        torch.from_numpy(test_labels)[b.keys], class_names(train), notes,
    )  # fmt: skip


def fit_best_rate(
    features: Features, images: Subset, classes: int, o: Options, device: torch.device
) -> tuple[Heads, float, tuple[str, ...]]:
    """Chooses the learning rate on held-out images, then trains a classifier on all of them.

    Args:
        features: labelled features of train.
        images: their images, to split off the held-out ones.
        classes: number of classes K.
        o: the protocol's options, with classifier "sgd" or "lars".
        device: where it is trained.

    Returns:
        The classifier (H = 1), its learning rate, and notes.
    """
    assert features.labels is not None  # noqa: S101 - the caller checked the source
    x, y = features.values.to(device), features.labels.to(device)
    best, notes = _choose_setting({(1, "auto"): x}, y, torch.arange(len(x)), images, o, classes)
    return fit_heads(x, y, [best.lr], **_fit_arguments(o, classes)), best.lr, notes


def _fit_arguments(o: Options, classes: int) -> dict[str, Any]:
    """Keyword arguments of `fit_heads`."""
    return {
        "classes": classes, "epochs": o.epochs, "batch_size": o.features_per_step,
        "batchnorm": o.batchnorm, "seed": o.seed, "lars": o.classifier == "lars",
    }  # fmt: skip


def _choose_setting(
    x: dict[tuple[int, str], Tensor], y: Tensor, keys: Tensor, train: Source, o: Options,
    classes: int,
) -> tuple[Setting, tuple[str, ...]]:  # fmt: skip
    """The setting with the best accuracy on held-out images of train, and a note about it."""
    rates = o.rates
    settings = [Setting(*key, lr) for key in x for lr in rates]
    if len(settings) == 1:
        return settings[0], ()
    readable = Subset(train, np.unique(keys.numpy()))
    held_out_keys = readable.indices[_held_out(readable, o)]
    held_out = torch.from_numpy(np.isin(keys.numpy(), held_out_keys)).to(y.device)
    scores: dict[Setting, tuple[float, float]] = {}
    for key, values in x.items():
        a, b = values[~held_out], values[held_out]
        if o.classifier == "logistic":
            for lr in rates:
                guess = _logistic(a, y[~held_out], b, lr, o)[:, 0]
                accuracy = float((guess == y[held_out].cpu()).float().mean())
                scores[Setting(*key, lr)] = (-accuracy, lr)
        else:
            heads = fit_heads(a, y[~held_out], rates, **_fit_arguments(o, classes))
            accuracies, losses = score_heads(heads, b, y[held_out])
            for i, lr in enumerate(rates):
                scores[Setting(*key, lr)] = (-float(accuracies[i]), float(losses[i]))
    best = min(scores, key=lambda s: scores[s])
    swept = "strength" if o.classifier == "logistic" else "learning rate"
    more = f" and {len(x)} kinds of features" if len(x) > 1 else ""
    note = (
        f"{swept} {best.lr:g} chosen of {len(rates)}{more} on {int(held_out.sum())} held-out "
        f"images of train (accuracy {-scores[best][0]:.1%}), then trained on all of train"
    )
    if len(rates) > 1 and best.lr in (rates[0], rates[-1]):
        note += "; it is at the edge of the range tried, so a better one may be outside"
    return best, (note,)


def _held_out(train: Source, o: Options) -> np.ndarray:
    """Indices of the images on which the setting is chosen, int64 [H]: whole groups if possible."""
    for units in (train.groups, None):
        try:
            return split(train, o.held_out, o.seed, units=units)[1].indices
        except DataError:  # every class lies in one group
            continue
    raise DataError(
        f"{train.name!r} has one image a class, so none can be held out to choose the learning "
        "rate. Give one rate, such as --lr 0.1, or more images."
    )


def _predict(x: Tensor, y: Tensor, z: Tensor, lr: float, o: Options, classes: int) -> Tensor:
    """Trains on x and predicts the classes of z: int64 [M, G] on the CPU, best first."""
    if o.classifier == "logistic":
        return _logistic(x, y, z, lr, o)
    head = fit_heads(x, y, [lr], **_fit_arguments(o, classes))
    rows_at_once = max(1, CHUNK_FLOATS // classes)
    return torch.cat([
        head(rows)[0].topk(min(TOP, classes), dim=1).indices.cpu() for rows in z.split(rows_at_once)
    ])  # fmt: skip


def _logistic(x: Tensor, y: Tensor, z: Tensor, strength: float, o: Options) -> Tensor:
    """As `_predict`, by scikit-learn's logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if o.batchnorm:
        mean, scale = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
        x, z = (x - mean) / scale, (z - mean) / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=o.epochs * 10)
        model.fit(x.cpu().numpy(), y.cpu().numpy())
    scores = torch.from_numpy(np.asarray(model.predict_log_proba(z.cpu().numpy())))
    order = scores.argsort(1, descending=True)[:, :TOP]
    return torch.from_numpy(np.asarray(model.classes_))[order]

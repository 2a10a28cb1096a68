"""A linear classifier on frozen features: everything swept in one frozen pass, chosen on held-out
images of train.

    classifier sgd       cross-entropy, momentum 0.9, cosine, all learning rates side by side
                         (Oquab et al., DINOv2, 2023; Caron et al., DINO, 2021)
    classifier lars      the same with LARS behind BatchNorm without affine parameters (He et al.,
                         Masked Autoencoders, 2022)
    classifier logistic  logistic regression, its penalty swept (DINOv2's other protocol)

    --blocks 1 4 --pools class class+mean   also sweeps what the features are, as DINOv2 does

Differs from all: features are computed once, of centre views or of --augmented random crops and
flips of each training image, where the papers draw one crop in every epoch; BatchNorm uses the
whole training set's statistics; the setting is chosen on a tenth of train and the classifier fitted
again on all of it, where DINOv2 picks on the validation set that it reports.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nolabel.data.source import Source, Subset, require_labels, split
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
    # None is a range that suits the classifier.
    lr: tuple[float, ...] | None = None
    blocks: tuple[int, ...] = (1,)  # last blocks whose class tokens stand side by side, swept
    pools: tuple[str, ...] = ("auto",)  # auto, class, class+mean, mean: swept as well
    augmented: int = 0  # random crops and flips of each training image; 0: its centre view
    epochs: int = 100  # passes over the features
    features_per_step: int = 256  # batch size of the classifier
    batchnorm: bool = True  # bring every feature to mean 0 and deviation 1 first (MAE)
    held_out: float = 0.1  # share of every class of train that chooses the setting
    seed: int = 0  # of initial weights, order, division and crops
    batch_size: int = 256  # images embedded at once

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise unknown("classifier", self.classifier, CLASSIFIERS)
        given = RATES[self.classifier] if self.lr is None else self.lr
        rates = (given,) if isinstance(given, int | float) else tuple(given)
        object.__setattr__(self, "lr", tuple(sorted({float(v) for v in rates})))
        if not rates or not all(v > 0 and math.isfinite(v) for v in rates):
            raise UsageError(f"lr must be numbers above 0, got {rates!r}.")
        as_tuples(self, "blocks", "pools")
        for pool in self.pools:
            if pool not in POOLS:
                raise unknown("pool", pool, POOLS)
        if not self.blocks or not self.pools:
            raise UsageError("Give one of blocks and one of pools at least.")
        at_least(self, epochs=1, features_per_step=1, batch_size=1)
        if not 0 < self.held_out < 1 or self.augmented < 0:
            raise UsageError(f"held_out must lie between 0 and 1, got {self.held_out}.")

    @property
    def own_embedding(self) -> bool:
        """Whether the features are the encoder's own embeddings of centre views."""
        return self.blocks == (1,) and self.pools == ("auto",) and not self.augmented


class Setting(NamedTuple):
    """One combination of the sweep."""

    blocks: int
    pool: str
    lr: float

    def label(self, o: Options) -> str:
        """Its name in the table."""
        name = "C" if o.classifier == "logistic" else "lr"
        parts = [f"{name}={self.lr:g}"]
        if len(o.blocks) > 1 or o.blocks != (1,):
            parts.append(f"{self.blocks} blocks")
        if o.pools != ("auto",):
            parts.append(self.pool)
        return ", ".join(parts)


def run_linear(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder by a linear classifier on its frozen features.

    Args:
        encoder: the encoder.
        train: labelled images, to fit on.
        test: labelled images of the same classes; used once, at the end.
        features: features of train and test, where they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`; or no class has two images in train.
        UsageError: more blocks than the network has, or blocks of different widths.
    """
    o = build_options(Options, options)
    device = encoder.device
    if o.own_embedding:
        found, judged, names, notes = labelled_features(
            encoder, train, test, features, o.batch_size
        )
        assert found.labels is not None and judged.labels is not None  # noqa: S101
        x = {(1, "auto"): found.values}
        z = {(1, "auto"): judged.values}
        keys, y, truth = found.keys, found.labels, judged.labels
    else:
        x, z, keys, y, truth, names, notes = _swept_features(encoder, train, test, o)
    sweep = {k: v.to(device) for k, v in x.items()}
    best, chosen = _best(sweep, y.to(device), keys, train, o, len(names))
    wide = sweep[best.blocks, best.pool]
    ranked = _ranked(wide, y, z[best.blocks, best.pool].to(device), best.lr, o, len(names))
    rows = accuracy_rows(best.label(o), ranked, truth, len(names))
    crops = f"{o.augmented} random crops of each training image"
    how = crops if o.augmented else "centre views, without augmentation"
    deviation = (
        f"features of {how}, computed once: the papers draw a crop in every epoch, so their "
        "figures are not quite comparable"
    )
    return Report(
        protocol="linear", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=rows[0], notes=(*notes, *chosen, deviation),
    )  # fmt: skip


def _swept_features(encoder: Encoder, train: Source, test: Source, o: Options) -> Any:
    """Features of every combination of blocks and pools; labels; names and notes."""
    labels, own = (
        require_labels(train),
        match_labels(train, test),
    )  # before the features are computed
    given: dict[str, Any] = {
        "blocks": max(o.blocks), "seed": o.seed, "batch_size": o.batch_size,
    }  # fmt: skip
    a = extract_block_features(encoder, train, crops=o.augmented, **given)
    b = extract_block_features(encoder, test, crops=0, **given)

    def swept(d: BlockFeatures) -> dict[tuple[int, str], Tensor]:
        return {(n, p): d.features(n, p) for n in o.blocks for p in o.pools}

    y = torch.from_numpy(labels.astype("i8"))[a.keys]
    truth = torch.from_numpy(own)[b.keys]
    return swept(a), swept(b), a.keys, y, truth, class_names(train), ()


def fit_best_rate(
    found: Features, kept: Subset, classes: int, o: Options, device: torch.device
) -> tuple[Heads, float, tuple[str, ...]]:
    """One classifier on features with labels: the rate chosen on held-out ones, then all of them.

    Args:
        found: of train.
        kept: their images, for the division.
        classes: number of classes K.
        o: the protocol's options, with a classifier of gradient steps.
        device: where it is fitted.

    Returns:
        The classifier (H = 1), its rate, and notes.
    """
    assert found.labels is not None  # noqa: S101 - asked of the source
    x, y = found.values.to(device), found.labels.to(device)
    best, notes = _best({(1, "auto"): x}, y, torch.arange(len(x)), kept, o, classes)
    return fit_heads(x, y, [best.lr], **_settings(o, classes)), best.lr, notes


def _settings(o: Options, classes: int) -> dict[str, Any]:
    return {
        "classes": classes, "epochs": o.epochs, "batch_size": o.features_per_step,
        "batchnorm": o.batchnorm, "seed": o.seed, "lars": o.classifier == "lars",
    }  # fmt: skip


def _best(
    x: dict[tuple[int, str], Tensor], y: Tensor, keys: Tensor, train: Source, o: Options,
    classes: int,
) -> tuple[Setting, tuple[str, ...]]:  # fmt: skip
    """The setting that does best on held-out images of train, and a note about it."""
    rates = o.lr or ()
    settings = [Setting(*key, lr) for key in x for lr in rates]
    if len(settings) == 1:
        return settings[0], ()
    kept = Subset(train, np.unique(keys.numpy()))
    held_images = split(kept, o.held_out, o.seed)[1].indices
    held = torch.from_numpy(np.isin(keys.numpy(), held_images)).to(y.device)
    if not bool(held.any()):
        raise DataError(
            f"{train.name!r} has one image a class, so none can be held out to choose the learning "
            "rate. Give one rate, such as --lr 0.1, or more images."
        )
    scores: dict[Setting, tuple[float, float]] = {}
    for key, values in x.items():
        a, b = values[~held], values[held]
        if o.classifier == "logistic":
            for lr in rates:
                share = float(
                    (_logistic(a, y[~held], b, lr, o)[:, 0] == y[held].cpu()).float().mean()
                )
                scores[Setting(*key, lr)] = (-share, lr)
        else:
            heads = fit_heads(a, y[~held], rates, **_settings(o, classes))
            right, loss = score_heads(heads, b, y[held])
            for i, lr in enumerate(rates):
                scores[Setting(*key, lr)] = (-float(right[i]), float(loss[i]))
    best = min(scores, key=lambda s: scores[s])
    what = "strength" if o.classifier == "logistic" else "learning rate"
    more = f" and {len(x)} kinds of features" if len(x) > 1 else ""
    note = (
        f"{what} {best.lr:g} chosen of {len(rates)}{more} on {int(held.sum())} held-out images of "
        f"train ({-scores[best][0]:.1%} right there), then fitted on all of train"
    )
    if len(rates) > 1 and best.lr in (rates[0], rates[-1]):
        note += "; it lies at the edge of the rates tried, so a better one may lie beyond"
    return best, (note,)


def _ranked(x: Tensor, y: Tensor, z: Tensor, lr: float, o: Options, classes: int) -> Tensor:
    """Classes of z by the classifier fitted on x, int64 [M, G], best first."""
    if o.classifier == "logistic":
        return _logistic(x, y, z, lr, o)
    head = fit_heads(x, y.to(x.device), [lr], **_settings(o, classes))
    step = max(1, CHUNK_FLOATS // classes)
    return torch.cat([
        head(rows)[0].topk(min(TOP, classes), dim=1).indices.cpu() for rows in z.split(step)
    ])  # fmt: skip


def _logistic(x: Tensor, y: Tensor, z: Tensor, strength: float, o: Options) -> Tensor:
    """The same by scikit-learn's logistic regression, features standardised where asked."""
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

"""Few-shot: a classifier from k labelled images a class, over many random draws of them.

The classifier is a logistic regression on features of unit length, or the nearest mean of a class
after subtracting the mean of all (Wang et al., "SimpleShot", 2019, arXiv 1911.04623). Each draw
takes k images of every class of train; all are judged on the whole of test. The interval is that
of the mean over draws (Student's t): it covers the chance of which images had labels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.errors import DataError, UsageError, unknown
from nolabel.protocols._options import as_tuples, at_least, build
from nolabel.protocols._scores import labelled_features
from nolabel.protocols.report import Report

CLASSIFIERS = ("logistic", "mean")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the few-shot protocol."""

    k: tuple[int, ...] = (1, 5, 10, 20)  # labelled images of each class
    draws: int = 10  # random choices of them
    classifier: str = "logistic"  # or mean: the nearest mean of a class
    strength: float = 1.0  # of the logistic regression: 1 / its L2 penalty, as scikit-learn's C
    seed: int = 0  # of the draws
    batch_size: int = 256  # images embedded at once

    def __post_init__(self) -> None:
        as_tuples(self, "k")
        if not self.k or not all(isinstance(k, int) and k >= 1 for k in self.k):
            raise UsageError(f"k must be whole numbers of at least 1, got {self.k!r}.")
        object.__setattr__(self, "k", tuple(sorted(set(self.k))))
        at_least(self, draws=2, batch_size=1)
        if not self.strength > 0:
            raise UsageError(f"strength must be above 0, got {self.strength}.")
        if self.classifier not in CLASSIFIERS:
            raise unknown("classifier", self.classifier, CLASSIFIERS)


def run_fewshot(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder by classifiers from few labels.

    Args:
        encoder: the encoder.
        train: labelled images, from which the few are drawn.
        test: labelled images of the same classes.
        features: features of train and test, where they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`; or a class has no k images for any k.
    """
    o = build(Options, options)
    found, judged, names, notes = labelled_features(encoder, train, test, features, o.batch_size)
    assert found.labels is not None and judged.labels is not None  # noqa: S101
    x, z = (F.normalize(f.values, dim=1).numpy() for f in (found, judged))
    y, truth = found.labels.numpy(), judged.labels.numpy()
    members = [np.flatnonzero(y == c) for c in np.unique(y)]
    least = min(len(m) for m in members)
    ks = [k for k in o.k if k <= least]
    if not ks:
        raise DataError(
            f"The smallest class of {train.name!r} has {least} image(s), fewer than the smallest k "
            f"({o.k[0]}). Give a smaller --k."
        )
    rows = []
    with progress_bar(f"few-shot, {encoder.name}", len(ks) * o.draws, True) as advance:
        for k in ks:
            shares = []
            for draw in range(o.draws):
                chosen = draw_few(members, k, (o.seed, k, draw))
                guess = classify(x[chosen], y[chosen], z, o.classifier, o.strength)
                shares.append(float((guess == truth).mean()))
                advance(1)
            rows.append(_row(k, np.array(shares), len(names)))
    if len(ks) < len(o.k):
        notes = (*notes, f"k above {least} was left out: the smallest class has {least} images")
    said = (
        f"{o.classifier} on features of unit length, {o.draws} draws (seed {o.seed}); intervals "
        "cover the draws, not the test images"
    )
    best = next((r for r in rows if r["setting"] == "k=5"), rows[-1])
    return Report(
        protocol="fewshot", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=best, notes=(*notes, said),
    )  # fmt: skip


def draw_few(members: list[np.ndarray], k: int, seed: tuple[int, ...]) -> np.ndarray:
    """k of each class's numbers, without repetition; the same for the same seed."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.choice(m, k, replace=False) for m in members])


def classify(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, classifier: str, strength: float
) -> np.ndarray:
    """Classes int64 [M] of features z [M, D] after learning from x [N, D] with classes y [N]."""
    if classifier == "mean":
        centre = x.mean(0)
        kinds = np.unique(y)
        means = np.stack([_unit(x[y == c] - centre).mean(0) for c in kinds])
        scores = torch.from_numpy(_unit(z - centre)) @ torch.from_numpy(_unit(means)).T
        return kinds[scores.argmax(1).numpy()]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few steps more change no guess
        return LogisticRegression(C=strength, max_iter=500).fit(x, y).predict(z)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _row(k: int, shares: np.ndarray, classes: int) -> dict[str, Any]:
    mean, n = float(shares.mean()), len(shares)
    half = float(stats.t.ppf(0.975, n - 1) * shares.std(ddof=1) / n**0.5)
    return {"setting": f"k={k}", "metric": "top1", "value": mean, "low": max(mean - half, 0.0),
            "high": min(mean + half, 1.0), "chance": 1 / classes}  # fmt: skip

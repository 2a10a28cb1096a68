"""Few-shot: a classifier from k labelled images of each class, over several random draws.

The classifier is a logistic regression on features of unit length, or the nearest class mean after
subtracting the mean of all (Wang et al., "SimpleShot", 2019, arXiv 1911.04623). Each draw takes k
images of every class of train and is evaluated on all of test. The confidence interval is that of
the mean over draws (Student's t): it covers the choice of the labelled images.
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
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._scores import labelled_features, share_of_largest
from nolabel.protocols.report import Report

CLASSIFIERS = ("logistic", "mean")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the few-shot protocol."""

    k: tuple[int, ...] = (1, 5, 10, 20)  # labelled images of each class
    draws: int = 10  # random draws of them
    classifier: str = "logistic"  # or mean: the nearest class mean
    strength: float = 1.0  # of the logistic regression: 1 / its L2 penalty, as scikit-learn's C
    seed: int = 0  # of the draws
    batch_size: int = 256  # images in a forward pass

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
    """Evaluates an encoder by classifiers trained on few labels.

    Args:
        encoder: the encoder.
        train: labelled images, from which the draws are taken.
        test: labelled images of the same classes.
        features: features of train and test if they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`; or a class has no k images for any k.
    """
    o = build_options(Options, options)
    train_features, test_features, names, notes = labelled_features(
        encoder, train, test, features, o.batch_size
    )
    assert train_features.labels is not None and test_features.labels is not None  # noqa: S101
    x, z = (F.normalize(f.values, dim=1).numpy() for f in (train_features, test_features))
    y, truth = train_features.labels.numpy(), test_features.labels.numpy()
    class_indices = [np.flatnonzero(y == c) for c in np.unique(y)]
    smallest = min(len(m) for m in class_indices)
    ks = [k for k in o.k if k <= smallest]
    if not ks:
        raise DataError(
            f"The smallest class of {train.name!r} has {smallest} image(s), fewer than the "
            f"smallest k ({o.k[0]}). Give a smaller --k."
        )
    rows = []
    with progress_bar(f"few-shot, {encoder.name}", len(ks) * o.draws, True) as advance:
        for k in ks:
            accuracies = []
            for draw in range(o.draws):
                indices = draw_few(class_indices, k, (o.seed, k, draw))
                predicted = classify(x[indices], y[indices], z, o.classifier, o.strength)
                accuracies.append(float((predicted == truth).mean()))
                advance(1)
            rows.append(_row(k, np.array(accuracies), share_of_largest(test_features.labels)))
    if len(ks) < len(o.k):
        notes = (
            *notes,
            f"k above {smallest} was left out: the smallest class has {smallest} images",
        )
    note = (
        f"{o.classifier} on features of unit length, {o.draws} draws (seed {o.seed}); intervals "
        "cover the draws, not the test images"
    )
    best = next((r for r in rows if r["setting"] == "k=5"), rows[-1])
    return Report(
        protocol="fewshot", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=best, notes=(*notes, note),
    )  # fmt: skip


def draw_few(class_indices: list[np.ndarray], k: int, seed: tuple[int, ...]) -> np.ndarray:
    """Draws k indices of each class without replacement; deterministic for a seed.

    Args:
        class_indices: int64 [n_c] for each of the C classes.
        k: number of images of each class.
        seed: seed of the draw.

    Returns:
        int64 [C * k].
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.choice(m, k, replace=False) for m in class_indices])


def classify(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, classifier: str, strength: float
) -> np.ndarray:
    """Trains a classifier and predicts.

    Args:
        x: float [N, D], training features.
        y: int64 [N], their classes.
        z: float [M, D], test features.
        classifier: one of `CLASSIFIERS`.
        strength: 1 / L2 penalty of the logistic regression.

    Returns:
        int64 [M], predicted classes.
    """
    if classifier == "mean":
        mean = x.mean(0)
        classes = np.unique(y)
        means = np.stack([_normalise(x[y == c] - mean).mean(0) for c in classes])
        scores = torch.from_numpy(_normalise(z - mean)) @ torch.from_numpy(_normalise(means)).T
        return classes[scores.argmax(1).numpy()]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # predictions are stable before full convergence
        return LogisticRegression(C=strength, max_iter=500).fit(x, y).predict(z)


def _normalise(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _row(k: int, accuracies: np.ndarray, chance: float) -> dict[str, Any]:
    mean, n = float(accuracies.mean()), len(accuracies)
    half_width = float(stats.t.ppf(0.975, n - 1) * accuracies.std(ddof=1) / n**0.5)
    low, high = max(mean - half_width, 0.0), min(mean + half_width, 1.0)
    return {"setting": f"k={k}", "metric": "top1", "value": mean, "low": low, "high": high,
            "chance": chance}  # fmt: skip

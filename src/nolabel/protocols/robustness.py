"""Robustness: a linear head trained on clean images, tested on corruptions and other domains.

A linear classifier is trained once on the frozen features of train (as in `linear`) and tested on

    test                      unchanged
    corruptions of test       noise, blur, brightness, contrast, JPEG, coarse pixels
                              (Hendrycks & Dietterich, 2019, arXiv 1903.12261)
    domains                   other labelled sets, NAME=SRC, or the values of the column `domain` of
                              the table that test is

For a set that has only some of train's classes, predictions are restricted to these, as for
ImageNet-A and -R.

With baselines, effective robustness (Taori et al., "Measuring Robustness to Natural Distribution
Shifts in Image Classification", 2020, arXiv 2007.00644): the accuracy on a domain minus the
one expected from the accuracy on test by a line fitted to the baselines, in logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nolabel.data.open import open_source
from nolabel.data.readable import describe_skipped
from nolabel.data.source import Source, Subset
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.errors import DataError, UsageError, unknown
from nolabel.protocols import linear
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._scores import accuracy_rows, labelled_features, match_labels
from nolabel.protocols.data.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from nolabel.protocols.report import Report
from nolabel.types import Sample


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the robustness protocol."""

    domains: tuple[str, ...] = ()  # other labelled sets: NAME=SRC
    corruptions: tuple[str, ...] = CORRUPTIONS  # of test; may be empty
    strengths: tuple[int, ...] = (1, 3, 5)  # of the corruptions, 1 to 5
    baselines: tuple[str, ...] = ()  # two or more ENC, for effective robustness
    epochs: int = 100  # of the classifier, as in linear
    seed: int = 0  # of corruptions, initial weights and order
    batch_size: int = 256  # images in a forward pass

    def __post_init__(self) -> None:
        as_tuples(self, "domains", "corruptions", "strengths", "baselines")
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise unknown("corruption", name, CORRUPTIONS)
        if not all(s in STRENGTHS for s in self.strengths) or not self.strengths:
            raise UsageError(f"strengths are numbers from 1 to 5, got {self.strengths!r}.")
        if any("=" not in d for d in self.domains):
            raise UsageError(
                f"domains are NAME=SRC, for example sketch=data/sketches, got {self.domains!r}."
            )
        if len(self.baselines) == 1:
            raise UsageError(
                f"Effective robustness needs two or more --baselines for its line, got 1: "
                f"{self.baselines[0]!r}."
            )
        at_least(self, epochs=1, batch_size=1)


class Corrupted(Source):
    """A source whose images are corrupted when they are read.

    Args:
        source: the clean images.
        name: one of `CORRUPTIONS`.
        strength: 1 to 5.
        seed: seed of the corruption.
    """

    def __init__(self, source: Source, name: str, strength: int, seed: int):
        self.source, self.corruption, self.strength, self.seed = source, name, strength, seed
        self.name = f"{source.name}, {name} {strength}"
        self.labels, self.classes = source.labels, source.classes

    def of(self, source: Source) -> Corrupted:
        """The same corruption of another source."""
        return Corrupted(source, self.corruption, self.strength, self.seed)

    def __len__(self) -> int:
        return len(self.source)

    def path(self, i: int, /) -> str:
        """Path of the clean image."""
        return self.source.path(i)

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Reads image i and corrupts it, deterministically.

        Raises:
            BadImage: the clean image cannot be read.
        """
        sample = self.source.read(i)
        seed = (self.seed, CORRUPTIONS.index(self.corruption), i)
        image = corrupted(sample.image, self.corruption, self.strength, seed)
        return Sample(image=image, label=sample.label)


def run_robustness(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Evaluates how much accuracy an encoder keeps under distribution shift.

    Args:
        encoder: the encoder.
        train: labelled images to train on.
        test: labelled images of the same classes; with the column `domain`, of several domains.
        features: features of train and test if they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`; or a domain has classes that train lacks.
        UsageError: a domain or baseline cannot be opened.
    """
    o = build_options(Options, options)
    sets = _open_sets(test, o, encoder)
    accuracies, rows, notes = _evaluate_sets(encoder, train, test, sets, features, o)
    clean = accuracies["test"]
    kept = [
        v / clean
        for name, v in accuracies.items()
        if name.rpartition(" ")[0] in CORRUPTIONS and clean
    ]
    if kept:
        rows.append({"setting": "corruptions, mean", "metric": "kept", "low": None, "high": None,
                     "value": float(np.mean(kept))})  # fmt: skip
    if o.baselines:
        rows += _effective_robustness(encoder, train, test, sets, accuracies, o)
    return Report(
        protocol="robustness", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=rows[0], notes=notes,
    )  # fmt: skip


def _open_sets(test: Source, o: Options, encoder: Encoder) -> dict[str, Source]:
    """The labelled sets besides test: domains and corruptions, by name."""
    sets: dict[str, Source] = {}
    if test.domains is not None:
        for i, name in enumerate(test.domain_names):
            sets[name] = Subset(test, np.flatnonzero(test.domains == i), f"{test.name} ({name})")
    for domain in o.domains:
        name, _, spec = domain.partition("=")
        sets[name] = open_source(
            spec, image_size=encoder.image_size, split_default="test", channels=encoder.channels
        )
    if o.corruptions and encoder.channels == 3:
        for name in o.corruptions:
            for strength in o.strengths:
                sets[f"{name} {strength}"] = Corrupted(test, name, strength, o.seed)
    return sets


def _evaluate_sets(
    encoder: Encoder,
    train: Source,
    test: Source,
    sets: dict[str, Source],
    features: tuple[Features, Features] | None,
    o: Options,
) -> tuple[dict[str, float], list[dict[str, Any]], tuple[str, ...]]:
    """Top-1 on test and on each set, their rows, and notes."""
    a, b, names, notes = labelled_features(encoder, train, test, features, o.batch_size)
    assert b.labels is not None  # noqa: S101
    linear_options = linear.Options(epochs=o.epochs, seed=o.seed)
    head, _, choice = linear.fit_best_rate(
        a, Subset(train, a.keys.numpy()), len(names), linear_options, encoder.device
    )
    rows = accuracy_rows("test", _predict(head, b.values, None), b.labels, len(names))[:1]
    # What is drawn for an image depends on its place among those that can be read.
    readable = Subset(test, b.keys.numpy())
    for name, given in sets.items():
        source = given.of(readable) if isinstance(given, Corrupted) else given
        labels = match_labels(train, source)  # fail before the features are computed
        allowed = np.unique(labels)
        z = extract(encoder, source, batch_size=o.batch_size)
        if not isinstance(source, Corrupted):
            notes = (*notes, *describe_skipped(source.name, z.skipped))
        truth = torch.from_numpy(labels)[z.keys]
        subset = None if len(allowed) == len(names) else torch.from_numpy(allowed)
        rows += accuracy_rows(name, _predict(head, z.values, subset), truth, len(names))[:1]
        if subset is not None:
            notes = (*notes, f"{name}: chosen among its own {len(allowed)} of {len(names)} classes")
    return {r["setting"]: r["value"] for r in rows}, rows, (*notes, *choice)


def _predict(head: linear.Heads, z: Tensor, subset: Tensor | None) -> Tensor:
    """Predicted class int64 [N, 1] of features [N, D], among all classes or those in `subset`."""
    logits = torch.cat([head(part.to(head.mean.device))[0].cpu() for part in z.split(8192)])
    if subset is None:
        return logits.argmax(1, keepdim=True)
    return subset[logits[:, subset].argmax(1)][:, None]


def _effective_robustness(
    encoder: Encoder, train: Source, test: Source, sets: dict[str, Source],
    accuracies: dict[str, float], o: Options,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of a report: accuracy minus the one expected by the baselines' line, for every set."""
    from nolabel.encoders import load

    base = []
    for spec in o.baselines:
        other = load(spec, image_size=encoder.image_size, channels=encoder.channels)
        base.append(_evaluate_sets(other, train, test, sets, None, o)[0])
    if len({b["test"] for b in base}) < 2:
        raise DataError(
            "The baselines have the same accuracy on test, so no line can be fitted. Give others."
        )
    return [
        {"setting": name, "metric": "effective", "low": None, "high": None,
         "value": accuracies[name]
         - expected_accuracy(accuracies["test"], [(b["test"], b[name]) for b in base])}
        for name in sets
    ]  # fmt: skip


def expected_accuracy(clean: float, pairs: list[tuple[float, float]]) -> float:
    """Accuracy under shift by a line fitted to the baselines in logits.

    Args:
        clean: accuracy on the clean test set, in 0..1.
        pairs: (clean, shifted) accuracies of two or more baselines.
    """

    def logit(share: float | list[float]) -> np.ndarray:
        p = np.clip(np.asarray(share, dtype=float), 1e-4, 1 - 1e-4)
        return np.log(p / (1 - p))

    x, y = (logit([p[i] for p in pairs]) for i in (0, 1))
    slope, intercept = np.polyfit(x, y, 1)
    return float(1 / (1 + np.exp(-(intercept + slope * logit(clean)))))

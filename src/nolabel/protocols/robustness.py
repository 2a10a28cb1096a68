"""Robustness: one head, fitted on clean images, judged on other domains and on corrupted images.

A linear classifier is fitted once on the frozen features of train (as in `linear`) and then sees

    test                      as it is
    corruptions of test       noise, blur, brightness, contrast, JPEG, coarse pixels
                              (Hendrycks & Dietterich, 2019, arXiv 1903.12261)
    domains                   other labelled sets, NAME=SRC, or the values of the column `domain` of
                              the table that test is

A set whose labels are some of train's classes chooses among those alone, as for ImageNet-A and -R.

With baselines, effective robustness (Taori et al., "Measuring Robustness to Natural Distribution
Shifts in Image Classification", 2020, arXiv 2007.00644): accuracy above what a line through the
baselines, in logits of accuracy on the domain over that on test, gives for this encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nolabel.data.open import open_source
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
    corruptions: tuple[str, ...] = CORRUPTIONS  # of test; none: leave it empty
    strengths: tuple[int, ...] = (1, 3, 5)  # of the corruptions, 1 to 5
    baselines: tuple[str, ...] = ()  # two or more ENC, for effective robustness
    epochs: int = 100  # of the classifier, as for linear
    seed: int = 0  # of corruptions, initial weights and order
    batch_size: int = 256  # images embedded at once

    def __post_init__(self) -> None:
        as_tuples(self, "domains", "corruptions", "strengths", "baselines")
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise unknown("corruption", name, CORRUPTIONS)
        if not all(s in STRENGTHS for s in self.strengths) or not self.strengths:
            raise UsageError(f"strengths are numbers from 1 to 5, got {self.strengths!r}.")
        if any("=" not in d for d in self.domains):
            raise UsageError("A domain is NAME=SRC, for example sketch=data/sketches.")
        if len(self.baselines) == 1:
            raise UsageError("A line needs two or more --baselines.")
        at_least(self, epochs=1, batch_size=1)


class Corrupted(Source):
    """A source whose images are corrupted when they are read."""

    def __init__(self, source: Source, name: str, strength: int, seed: int):
        self.source, self.kind, self.strength, self.seed = source, name, strength, seed
        self.name = f"{source.name}, {name} {strength}"
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def path(self, i: int, /) -> str:
        """Path of the clean image."""
        return self.source.path(i)

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, corrupted. Raises BadImage."""
        sample = self.source.read(i)
        seed = (self.seed, CORRUPTIONS.index(self.kind), i)
        image = corrupted(sample.image, self.kind, self.strength, seed)
        return Sample(image=image, label=sample.label)


def run_robustness(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges how much of an encoder's accuracy is left under shift.

    Args:
        encoder: the encoder.
        train: labelled images, to fit on.
        test: labelled images of the same classes; with the column `domain`, of several domains.
        features: features of train and test, where they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`; or a domain has classes that train lacks.
        UsageError: encoders and images of other channels than three, for corruptions.
    """
    o = build_options(Options, options)
    sets = _sets(test, o, encoder)
    shares, rows, notes = _judge(encoder, train, test, sets, features, o)
    clean = shares["test"]
    kept = [
        v / clean for name, v in shares.items() if name.rpartition(" ")[0] in CORRUPTIONS and clean
    ]
    if kept:
        rows.append({"setting": "corruptions, mean", "metric": "kept", "low": None, "high": None,
                     "value": float(np.mean(kept))})  # fmt: skip
    if o.baselines:
        rows += _effective(encoder, train, test, sets, shares, o)
    return Report(
        protocol="robustness", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=rows[0], notes=notes,
    )  # fmt: skip


def _sets(test: Source, o: Options, encoder: Encoder) -> dict[str, Source]:
    """Name -> labelled set, besides test itself."""
    sets: dict[str, Source] = {}
    if test.domains is not None:
        for i, name in enumerate(test.domain_names):
            sets[name] = Subset(test, np.flatnonzero(test.domains == i), f"{test.name} ({name})")
    for given in o.domains:
        name, _, spec = given.partition("=")
        sets[name] = open_source(
            spec, image_size=encoder.image_size, split_default="test", channels=encoder.channels
        )
    if o.corruptions and encoder.channels == 3:
        for kind in o.corruptions:
            for strength in o.strengths:
                sets[f"{kind} {strength}"] = Corrupted(test, kind, strength, o.seed)
    return sets


def _judge(
    encoder: Encoder,
    train: Source,
    test: Source,
    sets: dict[str, Source],
    features: tuple[Features, Features] | None,
    o: Options,
) -> tuple[dict[str, float], list[dict[str, Any]], tuple[str, ...]]:
    """Top-1 on test and on each set, their rows, and notes."""
    found, judged, names, notes = labelled_features(encoder, train, test, features, o.batch_size)
    assert judged.labels is not None  # noqa: S101
    fit = linear.Options(epochs=o.epochs, seed=o.seed)
    head, _, chosen = linear.fit_best_rate(
        found, Subset(train, found.keys.numpy()), len(names), fit, encoder.device
    )
    rows = accuracy_rows("test", _ranked(head, judged.values, None), judged.labels, len(names))[:1]
    for name, source in sets.items():
        labels = match_labels(train, source)  # before the features are computed
        allowed = np.unique(labels)
        z = extract(encoder, source, batch_size=o.batch_size)
        truth = torch.from_numpy(labels)[z.keys]
        subset = None if len(allowed) == len(names) else torch.from_numpy(allowed)
        rows += accuracy_rows(name, _ranked(head, z.values, subset), truth, len(names))[:1]
        if subset is not None:
            notes = (*notes, f"{name}: chosen among its own {len(allowed)} of {len(names)} classes")
    return {r["setting"]: r["value"] for r in rows}, rows, (*notes, *chosen)


def _ranked(head: linear.Heads, z: Tensor, subset: Tensor | None) -> Tensor:
    """The best class, int64 [N, 1], among all or those in `subset`."""
    logits = torch.cat([head(part.to(head.mean.device))[0].cpu() for part in z.split(8192)])
    if subset is None:
        return logits.argmax(1, keepdim=True)
    return subset[logits[:, subset].argmax(1)][:, None]


def _effective(
    encoder: Encoder, train: Source, test: Source, sets: dict[str, Source],
    shares: dict[str, float], o: Options,
) -> list[dict[str, Any]]:  # fmt: skip
    """Accuracy above the baselines' line, for every set."""
    from nolabel.encoders import load

    base = []
    for spec in o.baselines:
        other = load(spec, image_size=encoder.image_size, channels=encoder.channels)
        base.append(_judge(other, train, test, sets, None, o)[0])
    if len({b["test"] for b in base}) < 2:
        raise DataError("The baselines are equally good on test, so no line goes through them.")
    return [
        {"setting": name, "metric": "effective", "low": None, "high": None,
         "value": shares[name] - expected(shares["test"], [(b["test"], b[name]) for b in base])}
        for name in sets
    ]  # fmt: skip


def expected(clean: float, pairs: list[tuple[float, float]]) -> float:
    """Accuracy under shift that a line through (clean, shifted) pairs gives, in logits."""

    def logit(share: float | list[float]) -> np.ndarray:
        p = np.clip(np.asarray(share, dtype=float), 1e-4, 1 - 1e-4)
        return np.log(p / (1 - p))

    x, y = (logit([p[i] for p in pairs]) for i in (0, 1))
    slope, start = np.polyfit(x, y, 1)
    return float(1 / (1 + np.exp(-(start + slope * logit(clean)))))

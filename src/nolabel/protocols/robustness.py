"""Robustness: a linear head trained on clean images, tested on corruptions and other domains.

A linear classifier is trained once on the frozen features of train (as in `linear`) and tested on

    test                      unchanged
    corruptions of test       noise, blur, brightness, contrast, JPEG, coarse pixels
                              (Hendrycks & Dietterich, 2019, arXiv 1903.12261)
    domains                   other labelled sets, NAME=SRC, or the values of the column `domain` of
                              the table that test is

For a set that has only some of train's classes, predictions are restricted to these, as for
ImageNet-A and -R, and its accuracy is compared with that on the test images of these classes
(`difference`). Images of classes that train lacks are left out, as for ObjectNet. Classes that are
numbers, as ImageNet-V2's folders, count train's classes from 0 in their order.

An encoder with a text tower is also evaluated without a head, by the names of train's classes
(`zero-shot`).

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
from nolabel.data.source import Source, Subset, require_labels
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import DataError, UsageError, unknown
from nolabel.protocols import linear, zeroshot
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._scores import class_names, first_names, labelled_features, wilson
from nolabel.protocols.data.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from nolabel.protocols.report import Report
from nolabel.protocols.zeroshot import class_vectors
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
    found, notes = _evaluate_sets(encoder, train, test, sets, features, o)
    rows = [r for columns in found.values() for r in columns.rows]
    kept = [
        c.accuracy / c.clean
        for name, c in found.items()
        if name.rpartition(" ")[0] in CORRUPTIONS and c.clean
    ]
    if kept:
        rows.append(_plain("corruptions, mean", "kept", float(np.mean(kept))))
    for name, source in sets.items():
        if isinstance(source, Corrupted) or not np.isfinite(found[name].clean):
            continue  # of corruptions the share that is kept says it
        rows.append(_plain(name, "difference", found[name].accuracy - found[name].clean))
        zero_shot = found[name].zero_shot
        if zero_shot is not None:
            rows.append(_plain(name, "zero-shot difference", zero_shot[0] - zero_shot[1]))
    if o.baselines:
        rows += _effective_robustness(encoder, train, test, sets, found, o)
    return Report(
        protocol="robustness", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=rows[0], notes=notes,
    )  # fmt: skip


def _plain(setting: str, metric: str, value: float) -> dict[str, Any]:
    """A row of a report without an interval."""
    return {"setting": setting, "metric": metric, "value": value, "low": None, "high": None}


@dataclass(frozen=True)
class Columns:
    """What was measured on one set.

    Attributes:
        rows: of the report.
        accuracy: of the head on the set.
        clean: of the head on the test images of the set's classes, among these classes; NaN
            without such images.
        zero_shot: both by the text tower; None without one.
    """

    rows: list[dict[str, Any]]
    accuracy: float
    clean: float
    zero_shot: tuple[float, float] | None


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
) -> tuple[dict[str, Columns], tuple[str, ...]]:
    """What was measured on test ("test") and on each set, by name, and notes."""
    a, b, names, notes = labelled_features(encoder, train, test, features, o.batch_size)
    assert b.labels is not None  # noqa: S101
    known = np.unique(require_labels(train))
    matched = {name: match_domain(train, source) for name, source in sets.items()}
    linear_options = linear.Options(epochs=o.epochs, seed=o.seed)
    head, _, choice = linear.fit_best_rate(
        a, Subset(train, a.keys.numpy()), len(names), linear_options, encoder.device
    )
    text = text_or_none(encoder)
    vectors = None if text is None else class_vectors(text, names, zeroshot.Options().templates)

    def correct(z: Tensor, labels: Tensor, classes: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Whether each image is right, bool [N]: by the head, and by the text tower."""
        allowed = torch.from_numpy(classes)
        subset = None if len(classes) == len(names) else allowed
        by_head = _predict(head, z, subset)[:, 0] == labels
        if text is None or vectors is None:
            return by_head, None
        guesses = allowed[(text.project(z) @ vectors[allowed].T).argmax(1)]
        return by_head, guesses == labels

    def measure(name: str, z: Tensor, labels: Tensor, classes: np.ndarray) -> Columns:
        comparable = torch.from_numpy(np.isin(b.labels, classes))
        clean = correct(b.values[comparable], b.labels[comparable], classes)
        here = correct(z, labels, classes)
        rows = [_share(name, "top1", here[0])]
        zero_shot = None
        if here[1] is not None and clean[1] is not None:
            rows.append(_share(name, "zero-shot top1", here[1]))
            zero_shot = (rows[1]["value"], float(clean[1].double().mean()))
        return Columns(rows, rows[0]["value"], float(clean[0].double().mean()), zero_shot)

    found = {"test": measure("test", b.values, b.labels, known)}
    for name, source in sets.items():
        keys, labels, remarks = matched[name]
        z = extract(encoder, Subset(source, keys), batch_size=o.batch_size)
        classes = np.unique(labels)
        found[name] = measure(name, z.values, torch.from_numpy(labels)[z.keys], classes)
        notes = (*notes, *(f"{name}: {remark}" for remark in remarks))
        if len(classes) < len(names):
            notes = (*notes, f"{name}: chosen among its own {len(classes)} of {len(names)} classes")
    return found, (*notes, *choice)


def _share(setting: str, metric: str, right: Tensor) -> dict[str, Any]:
    """A row of a report: the share of right answers, bool [N], with its interval."""
    correct, total = int(right.sum()), len(right)
    low, high = wilson(correct, total)
    value = correct / max(total, 1)
    return {"setting": setting, "metric": metric, "value": value, "low": low, "high": high}


def text_or_none(encoder: Encoder) -> TextEncoder | None:
    """The encoder's text tower, if it has one."""
    try:
        return text_of(encoder)
    except UsageError:
        return None


def match_domain(train: Source, source: Source) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The images of a domain whose classes train has; classes are matched by name.

    Classes that are all numbers, of which train has none by name, are numbers of train's classes.

    Args:
        train: labelled images.
        source: labelled images of the domain.

    Returns:
        Indices of the images int64 [N], their labels in the numbering of train, int64 [N], and
        remarks on what was left out.

    Raises:
        DataError: no labels, or no class of train.
    """
    names, present = class_names(train), np.unique(require_labels(train))
    if source.labels is None:
        require_labels(source)  # raises, with a message on what to do
    labels = np.asarray(source.labels)
    own = source.classes or tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))
    index = {names[int(i)]: int(i) for i in present}
    remarks = []
    numbered = all(n.isdecimal() and int(n) < len(names) for n in own) and not {*own} & {*index}
    if numbered and own:
        index = {n: int(n) for n in own if int(n) in present}
        first = own[0]
        remarks.append(
            f"its classes are numbers, which count train's classes from 0: {first} is "
            f"{names[int(first)]!r}"
        )
    table = np.array([index.get(n, -1) for n in own], dtype=np.int64)
    matched = table[labels]
    keys = np.flatnonzero(matched >= 0)
    foreign = sorted({own[int(i)] for i in np.unique(labels[matched < 0])})
    if not len(keys):
        raise DataError(
            f"{source.name!r} has no class of {train.name!r}. It has: {first_names(foreign)}. "
            f"Train has: {first_names(names)}. Classes are matched by name."
        )
    if foreign:
        remarks.append(
            f"{len(labels) - len(keys)} images of {len(foreign)} classes that train lacks left "
            f"out: {first_names(foreign)}"
        )
    return keys, matched[keys], remarks


def _predict(head: linear.Heads, z: Tensor, subset: Tensor | None) -> Tensor:
    """Predicted class int64 [N, 1] of features [N, D], among all classes or those in `subset`."""
    logits = torch.cat([head(part.to(head.mean.device))[0].cpu() for part in z.split(8192)])
    if subset is None:
        return logits.argmax(1, keepdim=True)
    return subset[logits[:, subset].argmax(1)][:, None]


def _effective_robustness(
    encoder: Encoder, train: Source, test: Source, sets: dict[str, Source],
    found: dict[str, Columns], o: Options,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of a report: accuracy minus the one expected by the baselines' line, for every set."""
    from nolabel.encoders import load

    base = []
    for spec in o.baselines:
        other = load(spec, image_size=encoder.image_size, channels=encoder.channels)
        base.append(_evaluate_sets(other, train, test, sets, None, o)[0])
    if len({b["test"].accuracy for b in base}) < 2:
        raise DataError(
            "The baselines have the same accuracy on test, so no line can be fitted. Give others."
        )
    rows = []
    for name in sets:
        line = [(b[name].clean, b[name].accuracy) for b in base]
        if len({clean for clean, _ in line}) < 2 or not np.isfinite(found[name].clean):
            continue  # on the test images of these classes they are equal, or there are none
        mine = found[name]
        effective = mine.accuracy - expected_accuracy(mine.clean, line)
        rows.append(_plain(name, "effective", effective))
        if mine.zero_shot is not None:
            accuracy, clean = mine.zero_shot
            effective = accuracy - expected_accuracy(clean, line)
            rows.append(_plain(name, "zero-shot effective", effective))
    return rows


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

"""Zero-shot: classes named by words, and images and texts that find each other.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, §3.1.

    w_c      = unit( mean over templates of unit( g("a photo of a CLASS") ) )
    guess(x) = argmax over c of  unit(P f(x)) . w_c

f is the encoder, P and g the projection and the text tower of the same run. Nothing is trained
and labels are used for the score alone.

Classes: the names of the labels; where the images have no labels, each distinct text of the test
set is a class of its own, taken as it is, without templates. Retrieval: each image looks for its
text among the texts of all test images and each text for its image. Texts may be equal: a hit is
any text equal to the image's own, and any image whose text is equal to the text that asks.

Chance is that of a guess at random among the classes, or of a random order of the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.data.source import Source
from nolabel.data.text.captions import has_texts, texts_of
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import DataError, UsageError
from nolabel.nn.knn import nearest
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._scores import TOP, interval, wilson
from nolabel.protocols.prompts import names_of, templates_of
from nolabel.protocols.report import Report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the zero-shot protocol."""

    # {} stands for the class; imagenet80 and imagenet7 are the published sets of templates.
    templates: tuple[str, ...] = ("{}", "a {}", "a photo of a {}")
    names: str = ""  # of the classes: imagenet, or a file with one a line; default: their own
    batch_size: int = 256  # images or texts embedded at once

    def __post_init__(self) -> None:
        as_tuples(self, "templates")
        given = templates_of(self.templates)
        object.__setattr__(self, "templates", given)
        wrong = [t for t in given if t.count("{}") != 1]
        if wrong or not given:
            raise UsageError(
                f"A template is a text with one {{}} for the name of the class, got "
                f"{wrong[0] if wrong else 'none'!r}. For example: --templates 'a photo of a {{}}'."
            )
        at_least(self, batch_size=1)


def class_vectors(
    text: TextEncoder, names: Sequence[str], templates: Sequence[str], batch_size: int = 256
) -> Tensor:
    """Unit vectors float32 [C, E]: each name in every template, mean of unit vectors, unit again.

    Args:
        text: the text tower.
        names: of the C classes; `_` and `-` between words become spaces.
        templates: texts with one {} each.
    """
    spoken = [name.replace("_", " ") for name in names]
    prompts = [t.replace("{}", name) for name in spoken for t in templates]
    z = text.embed(prompts, batch_size=batch_size).unflatten(0, (len(names), len(templates)))
    return F.normalize(F.normalize(z, dim=-1).mean(1), dim=-1)


def chance_of_hit(equal: np.ndarray, pool: int, k: int) -> float:
    """Chance that a random order of `pool` candidates has one of a query's own among its first k,
    averaged over queries with `equal` [M] candidates of their own each."""
    miss = np.ones(len(equal))
    for j in range(min(k, pool)):
        miss *= np.maximum(pool - equal - j, 0) / (pool - j)
    return float(1 - miss.mean())


def run_zeroshot(
    encoder: Encoder,
    train: Source | None,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder with the text tower of its run.

    Args:
        encoder: the encoder of a run that learnt from captions.
        train: not used.
        test: images with labels, texts, or both.
        features: features of train and test, where they were computed before.
        **options: fields of `Options`.

    Raises:
        UsageError: the encoder has no text tower.
        DataError: the test set has neither labels nor texts, or an image without its text.
    """
    o = build_options(Options, options)
    text = text_of(encoder)
    captioned = has_texts(test)
    if test.labels is None and not captioned:
        raise DataError(
            f"{test.name!r} has neither labels nor texts, so there is nothing to compare with. "
            "Give images in a folder for each class, or with captions."
        )
    found = features[1] if features else extract(encoder, test, batch_size=o.batch_size)
    images = text.project(found.values)
    if not bool(torch.isfinite(images).all()):
        raise DataError(f"{encoder.name} gives features of {test.name!r} that are not finite.")
    captions = _captions(test, found) if captioned else []
    rows, notes = [], []
    if test.labels is not None and found.labels is not None:
        names = test.classes or tuple(str(i) for i in range(int(test.labels.max()) + 1))
        vectors = class_vectors(text, names_of(o.names, names), o.templates, o.batch_size)
        rows += class_rows(
            f"{len(names)} classes, {len(o.templates)} templates",
            nearest(images, vectors, TOP)[1], found.labels, len(names),
        )  # fmt: skip
        more = f" and {len(o.templates) - 8} more" if len(o.templates) > 8 else ""
        notes.append("templates: " + ", ".join(repr(t) for t in o.templates[:8]) + more)
    else:
        distinct = list(dict.fromkeys(captions))
        number = {name: i for i, name in enumerate(distinct)}
        labels = torch.tensor([number[c] for c in captions])
        vectors = text.embed(distinct, batch_size=o.batch_size)
        guesses = nearest(images, vectors, TOP)[1]
        rows += class_rows(f"{len(distinct)} distinct texts", guesses, labels, len(distinct))
        notes.append("there are no labels: each distinct text of the test set is a class")
    if captioned:
        rows += retrieval_rows(images, text.embed(captions, batch_size=o.batch_size), captions)
        equal = len(captions) - len(set(captions))
        notes.append(
            f"retrieval among {len(captions)} images and their texts"
            + (f", {equal} of which repeat another: any equal text is a hit" if equal else "")
        )
    if found.skipped:
        path, reason = found.skipped[0]
        notes.append(f"{len(found.skipped)} image(s) left out, first: {path}: {reason}")
    return Report(
        protocol="zeroshot", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=rows[0], notes=tuple(notes),
    )  # fmt: skip


def class_rows(setting: str, guesses: Tensor, labels: Tensor, classes: int) -> list[dict[str, Any]]:
    """top1, top5 (of more than five classes) and the mean of the classes' recalls.

    Args:
        guesses: int64 [N, G], best first.
        labels: int64 [N].
        classes: number of classes guessed among; those without an image have no recall.
    """
    hits = guesses == labels[:, None]
    rows = [
        _row(setting, f"top{k}", int(hits[:, :k].any(1).sum()), len(labels), min(k / classes, 1))
        for k in ((1, TOP) if classes > TOP else (1,))
    ]
    counts = torch.bincount(labels, minlength=classes).double()
    right = torch.bincount(labels[hits[:, 0]], minlength=classes).double()
    there = counts > 0
    recall = float((right[there] / counts[there]).mean())
    # As many independent images as would give the mean of recalls the same variance.
    images = float(there.sum() ** 2 / (1 / counts[there]).sum())
    low, high = interval(recall, images)
    row = {"setting": setting, "metric": "mean_recall", "value": recall, "low": low, "high": high}
    return [*rows, {**row, "chance": 1 / classes}]


def retrieval_rows(images: Tensor, texts: Tensor, captions: Sequence[str]) -> list[dict[str, Any]]:
    """Recall at 1 and 5 in both directions.

    Args:
        images, texts: unit vectors [N, E] of the pairs.
        captions: the N texts; equal ones count as the same.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(captions))}
    own = torch.tensor([number[c] for c in captions])
    counts = Counter(captions)
    equal = np.array([counts[c] for c in captions])
    rows = []
    for setting, a, b in (("image to text", images, texts), ("text to image", texts, images)):
        hits = own[nearest(a, b, TOP)[1]] == own[:, None]
        for k in (1, TOP):
            chance = chance_of_hit(equal, len(captions), k)
            right = int(hits[:, :k].any(1).sum())
            rows.append(_row(setting, f"recall@{k}", right, len(captions), chance))
    return rows


def _row(setting: str, metric: str, right: int, total: int, chance: float) -> dict[str, Any]:
    low, high = wilson(right, total)
    value = right / total
    return {
        "setting": setting, "metric": metric, "value": value, "low": low, "high": high,
        "chance": chance,
    }  # fmt: skip


def _captions(test: Source, found: Features) -> list[str]:
    """Texts of the images that could be read."""
    texts = texts_of(test, found.keys.numpy())
    for key, text in zip(found.keys.tolist(), texts, strict=True):
        if not text:
            raise DataError(f"{test.path(key)} has no text, while others of {test.name!r} have.")
    return [t or "" for t in texts]

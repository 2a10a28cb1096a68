"""Zero-shot classification by class names, and retrieval between images and texts.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, §3.1.

    w_c      = unit( mean over templates of unit( g("a photo of a CLASS") ) )
    guess(x) = argmax over c of  unit(P f(x)) . w_c

f is the encoder, P and g the projection and the text tower of the same run. Nothing is trained;
labels are used for the score only.

Classes: the names of the labels; without labels, each distinct text of the test set is a class,
used without templates. Retrieval: each image is a query for its text among the texts of all test
images, and each text for its image. Texts may be equal: any text equal to the image's own is a hit,
and so is any image whose text equals the query.

Rows of a table with the same path are one image, with several texts (Flickr30k and COCO have five)
or several labels. An image with several texts is right if one of them is found. With several labels
the result is the mean over the classes of the average precision of all images (`mAP`).

Chance is the score of a random class, or of a random order of the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.data.readable import describe_skipped
from nolabel.data.source import Source
from nolabel.data.text.captions import has_texts, texts_of
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import DataError, UsageError, printable
from nolabel.nn.knn import nearest
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._scores import TOP, interval, wilson
from nolabel.protocols._several import average_precisions, extract_once, label_matrix, listing
from nolabel.protocols.prompts import names_of, templates_of
from nolabel.protocols.report import Report

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the zero-shot protocol."""

    # {} is the class name; imagenet80 and imagenet7 are the published sets of templates.
    templates: tuple[str, ...] = ("{}", "a {}", "a photo of a {}")
    names: str = ""  # of the classes: imagenet, or a file with one per line; default: the data's
    batch_size: int = 256  # images or texts in a forward pass

    def __post_init__(self) -> None:
        as_tuples(self, "templates")
        templates = templates_of(self.templates)
        object.__setattr__(self, "templates", templates)
        invalid = [t for t in templates if t.count("{}") != 1]
        if invalid or not templates:
            raise UsageError(
                f"A template is a text with one {{}} for the class name, got "
                f"{invalid[0] if invalid else 'none'!r}. For example: --templates "
                "'a photo of a {}'."
            )
        at_least(self, batch_size=1)


def class_vectors(
    text: TextEncoder, names: Sequence[str], templates: Sequence[str], batch_size: int = 256
) -> Tensor:
    """Vectors of classes: the normalised mean of the unit vectors of all prompts of a class.

    Args:
        text: the text tower.
        names: names of the C classes; `_` becomes a space.
        templates: texts with one {} each.
        batch_size: texts in a forward pass.

    Returns:
        Unit vectors float32 [C, E] on the CPU.
    """
    words = [name.replace("_", " ") for name in names]
    prompts = [t.replace("{}", name) for name in words for t in templates]
    z = text.embed(prompts, batch_size=batch_size).unflatten(0, (len(names), len(templates)))
    return F.normalize(F.normalize(z, dim=-1).mean(1), dim=-1)


def class_probabilities(images: Tensor, classes: Tensor, scale: float) -> Tensor:
    """Softmax over the classes of the scaled cosines.

    Args:
        images: unit vectors float [N, E].
        classes: unit vectors float [C, E].
        scale: factor of the cosines; CLIP learns its logarithm.

    Returns:
        float [N, C].
    """
    return (images @ classes.T * scale).softmax(1)


def chance_of_hit(equal: np.ndarray, pool: int, k: int) -> float:
    """Probability that a random order of candidates has a right one among the first k.

    Args:
        equal: int [M], number of right candidates of each query.
        pool: number of candidates.
        k: number of first candidates.

    Returns:
        The mean over queries, in 0..1.
    """
    miss_probability = np.ones(len(equal))
    for j in range(min(k, pool)):
        miss_probability *= np.maximum(pool - equal - j, 0) / (pool - j)
    return float(1 - miss_probability.mean())


def run_zeroshot(
    encoder: Encoder,
    train: Source | None,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Evaluates an encoder with the text tower of its run.

    Args:
        encoder: an encoder with a text tower.
        train: not used.
        test: images with labels, texts, or both.
        features: features of train and test if they were computed before.
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
            "Give images with a folder for each class, or with captions."
        )
    listed = listing(test)
    extracted = extract_once(encoder, test, listed, features[1] if features else None, o.batch_size)
    images = text.project(extracted.values)
    if not bool(torch.isfinite(images).all()):
        raise DataError(
            f"{encoder.name} gives features of {test.name!r} that are not finite (NaN or "
            "infinite). Check the encoder's weights, or use another checkpoint."
        )
    # The number of each row's image among those that could be read, -1 for the others.
    kept = np.full(len(listed.first), -1)
    kept[listed.image[extracted.keys.numpy()]] = np.arange(len(images))
    image_of = kept[listed.image]
    text_rows = np.flatnonzero(image_of >= 0)
    captions = _captions(test, text_rows) if captioned else []
    owner = torch.from_numpy(image_of[text_rows])
    rows, notes = [], []
    if test.labels is not None and extracted.labels is not None:
        rows, notes = _label_rows(text, images, test, image_of, extracted.labels, o)
    elif len(captions) == len(images):
        distinct = list(dict.fromkeys(captions))
        index_of = {name: i for i, name in enumerate(distinct)}
        labels = torch.tensor([index_of[c] for c in captions])
        vectors = text.embed(distinct, batch_size=o.batch_size)
        guesses = nearest(images[owner], vectors, TOP)[1]
        rows += class_rows(f"{len(distinct)} distinct texts", guesses, labels, len(distinct))
        notes.append("without labels, each distinct text of the test set is a class")
    if captioned:
        texts = text.embed(captions, batch_size=o.batch_size)
        rows += retrieval_rows(images, texts, captions, owner)
        equal = len(captions) - len(set(captions))
        notes.append(
            f"retrieval among {len(images)} images and {len(captions)} texts"
            + (f", {equal} of which repeat another: any equal text is a hit" if equal else "")
        )
    notes += describe_skipped(test.name, extracted.skipped)
    return Report(
        protocol="zeroshot", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=rows[0], notes=tuple(notes),
    )  # fmt: skip


def _label_rows(
    text: TextEncoder, images: Tensor, test: Source, image_of: np.ndarray, labels: Tensor,
    o: Options,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """Rows and notes of the classification of images with labels.

    Args:
        text: the text tower.
        images: unit vectors float [N, E].
        test: the labelled source.
        image_of: image of each row of the source, int64 [rows]; -1 is none.
        labels: label of the first row of each image, int64 [N].
        o: the protocol's options.
    """
    assert test.labels is not None  # noqa: S101
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    names = test.classes or tuple(str(i) for i in range(int(test.labels.max()) + 1))
    vectors = class_vectors(text, names_of(o.names, names), o.templates, o.batch_size)
    setting = f"{len(names)} classes, {len(o.templates)} templates"
    truth = label_matrix(test.labels, image_of, len(images), len(names))
    if (truth.sum(1) > 1).any():
        rows += multi_label_rows(setting, images @ vectors.T, truth)
        notes.append("images have several labels: mean over the classes of average precision")
    else:
        rows += class_rows(setting, nearest(images, vectors, TOP)[1], labels, len(names))
    more = f" and {len(o.templates) - 8} more" if len(o.templates) > 8 else ""
    notes.append("templates: " + ", ".join(repr(t) for t in o.templates[:8]) + more)
    return rows, notes


def class_rows(setting: str, guesses: Tensor, labels: Tensor, classes: int) -> list[dict[str, Any]]:
    """Rows of a report: top1, top5 (if more than five classes) and mean recall of the classes.

    Args:
        setting: name of the setting.
        guesses: int64 [N, G], predicted classes, best first.
        labels: int64 [N].
        classes: number of candidate classes; those without an image have no recall.
    """
    hits = guesses == labels[:, None]
    rows = [
        _row(setting, f"top{k}", int(hits[:, :k].any(1).sum()), len(labels), min(k / classes, 1))
        for k in ((1, TOP) if classes > TOP else (1,))
    ]
    counts = torch.bincount(labels, minlength=classes).double()
    correct = torch.bincount(labels[hits[:, 0]], minlength=classes).double()
    present = counts > 0
    recall = float((correct[present] / counts[present]).mean())
    # Effective number of images: the mean of the recalls has the variance of that many images.
    images = float(present.sum() ** 2 / (1 / counts[present]).sum())
    low, high = interval(recall, images)
    row = {"setting": setting, "metric": "mean_recall", "value": recall, "low": low, "high": high}
    return [*rows, {**row, "chance": 1 / classes}]


def multi_label_rows(setting: str, scores: Tensor, truth: np.ndarray) -> list[dict[str, Any]]:
    """Row of a report: mean over the classes of average precision (`mAP`).

    Args:
        setting: name of the setting.
        scores: float [N, C].
        truth: bool [N, C]; classes without an image are left out.
    """
    values = average_precisions(scores.numpy(), truth)
    present = ~np.isnan(values)
    # In a random order the precision is the share of positives, at least in the mean.
    chance = float(truth[:, present].mean())
    return [{"setting": setting, "metric": "mAP", "value": float(values[present].mean()),
             "low": None, "high": None, "chance": chance}]  # fmt: skip


def retrieval_rows(
    images: Tensor, texts: Tensor, captions: Sequence[str], owner: Tensor | None = None
) -> list[dict[str, Any]]:
    """Rows of a report: recall at 1, 5 and 10 in both directions.

    An image is a hit of a text, and a text of an image, if one of the image's texts equals it.

    Args:
        images: unit vectors float [N, E] of the images.
        texts: unit vectors float [M, E] of their texts.
        captions: the M texts; equal ones are interchangeable.
        owner: the image of each text, int64 [M]; None: text i belongs to image i.
    """
    index_of = {name: i for i, name in enumerate(dict.fromkeys(captions))}
    ids = np.array([index_of[c] for c in captions])
    owners = np.arange(len(captions)) if owner is None else owner.numpy()
    pairs = np.unique(owners * len(index_of) + ids)  # (image, text) that belong together
    with_text = np.bincount(ids)  # rows of each text
    with_image = np.bincount(pairs % len(index_of))  # images of each text
    right = np.zeros(len(images), dtype=np.int64)  # rows whose text is one of the image's
    np.add.at(right, pairs // len(index_of), with_text[pairs % len(index_of)])
    most = max(RECALL_AT)
    to_text = ids[nearest(images, texts, most)[1].numpy()]
    to_image = nearest(texts, images, most)[1].numpy()
    hits = {
        "image to text": np.isin(np.arange(len(images))[:, None] * len(index_of) + to_text, pairs),
        "text to image": np.isin(to_image * len(index_of) + ids[:, None], pairs),
    }
    equal = {"image to text": right, "text to image": with_image[ids]}
    pool = {"image to text": len(texts), "text to image": len(images)}
    return [
        _row(setting, f"recall@{k}", int(found[:, :k].any(1).sum()), len(found),
             chance_of_hit(equal[setting], pool[setting], k))
        for setting, found in hits.items()
        for k in RECALL_AT
    ]  # fmt: skip


def _row(setting: str, metric: str, correct: int, total: int, chance: float) -> dict[str, Any]:
    low, high = wilson(correct, total)
    value = correct / total
    return {
        "setting": setting, "metric": metric, "value": value, "low": low, "high": high,
        "chance": chance,
    }  # fmt: skip


def _captions(test: Source, rows: np.ndarray) -> list[str]:
    """Texts of some rows; every one must have a text."""
    texts = texts_of(test, rows)
    for key, text in zip(rows.tolist(), texts, strict=True):
        if not text:
            raise DataError(
                f"{printable(test.path(key))} has no text, while others of {test.name!r} have. "
                "Add it, or leave the image out."
            )
    return [t or "" for t in texts]

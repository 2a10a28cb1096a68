"""k-nearest-neighbour classifier on frozen features; nothing is trained.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (`eval_knn.py`);
first in Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018.

    sim(x, i)  = cos(f(x), f(i))
    vote(x, c) = sum over the k nearest i with label c of  exp(sim(x, i) / T)

Differs from the original: classes without a vote are never predicted, while the original's top5
fills up with arbitrary classes; any number of images works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features
from nolabel.errors import UsageError
from nolabel.nn.knn import nearest
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols._scores import TOP, accuracy_rows, labelled_features
from nolabel.protocols.report import Report

USUAL_K = 20  # the k reported in most papers
_CHUNK_FLOATS = 2**24  # votes in memory at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the k-NN protocol."""

    k: tuple[int, ...] = (10, 20, 100, 200)  # numbers of neighbours, each gives rows of the report
    temperature: float = 0.07  # T: smaller gives the nearest more weight
    batch_size: int = 256  # images in a forward pass

    def __post_init__(self) -> None:
        as_tuples(self, "k")
        if not self.k or not all(isinstance(k, int) and k >= 1 for k in self.k):
            raise UsageError(f"k must be whole numbers of at least 1, got {self.k!r}.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UsageError(f"temperature must be above 0, got {self.temperature!r}.")
        at_least(self, batch_size=1)


@torch.no_grad()
def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    classes: int,
) -> dict[int, Tensor]:
    """Predicts the classes of test images by a weighted vote of their nearest neighbours.

    Args:
        train: float [N, D]; need not be of unit length.
        train_labels: int64 [N] in [0, classes).
        test: float [M, D].
        ks: numbers of neighbours k; those above N count as N.
        temperature: temperature T of the weights.
        classes: number of classes C.

    Returns:
        For each k (after capping): int64 [M, min(5, C)], the classes with most votes, best first;
        -1 where fewer classes got a vote.
    """
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    labels = train_labels.to(train.device)
    capped = sorted({min(k, len(train)) for k in ks})
    predictions: dict[int, list[Tensor]] = {k: [] for k in capped}
    similarities, index = nearest(test, train, capped[-1])
    rows_at_once = max(1, _CHUNK_FLOATS // classes)
    for similarity, neighbour_labels in zip(
        similarities.split(rows_at_once), labels[index].split(rows_at_once), strict=True
    ):
        # Relative to the nearest neighbour: scales all votes of a row alike and avoids overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        for k in capped:
            votes = weights.new_full((len(similarity), classes), 0.0)
            votes.scatter_add_(1, neighbour_labels[:, :k], weights[:, :k])
            has_vote = torch.zeros_like(votes, dtype=torch.bool).scatter_(
                1, neighbour_labels[:, :k], True
            )
            best = votes.masked_fill(~has_vote, -1).topk(min(TOP, classes), dim=1).indices
            predictions[k].append(best.where(has_vote.gather(1, best), -1))
    empty = train_labels.new_empty(0, min(TOP, classes))
    return {k: torch.cat(parts) if parts else empty for k, parts in predictions.items()}


def run_knn(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Evaluates an encoder by k-NN on embeddings of centre crops, on its own device.

    Args:
        encoder: the encoder.
        train: labelled images, in which neighbours are searched.
        test: labelled images of the same classes.
        features: features of train and test if they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`.
    """
    o = build_options(Options, options)
    train_features, test_features, names, notes = labelled_features(
        encoder, train, test, features, o.batch_size
    )
    assert train_features.labels is not None and test_features.labels is not None  # noqa: S101
    device = encoder.device
    predictions = knn_predict(
        train_features.values.to(device),
        train_features.labels.to(device),
        test_features.values.to(device),
        ks=o.k,
        temperature=o.temperature,
        classes=len(names),
    )
    rows = [
        row
        for k, predicted in predictions.items()
        for row in accuracy_rows(f"k={k}", predicted, test_features.labels, len(names))
    ]
    top1 = {int(r["setting"][2:]): r for r in rows if r["metric"] == "top1"}
    best_k = min(top1, key=lambda k: abs(math.log(k / USUAL_K)))
    highest = max(top1, key=lambda k: top1[k]["value"])
    usual = "the k of most papers" if best_k == USUAL_K else f"the nearest to {USUAL_K} here"
    note = f"best is k={best_k}, {usual}, fixed beforehand rather than picked by the test score"
    if top1[highest]["value"] > top1[best_k]["value"]:
        note += f"; to report k={highest} because it scores highest here would be optimistic"
    if max(o.k) > len(train_features.values):
        notes = (*notes, f"k is at most the {len(train_features.values)} images of train")
    return Report(
        protocol="knn",
        encoder=encoder.name,
        train=train.name,
        test=test.name,
        rows=tuple(rows),
        best=top1[best_k],
        notes=(*notes, note),
    )

"""k nearest neighbours; nothing is trained.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (`eval_knn.py`);
first in Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018.

    sim(x, i)  = cos(f(x), f(i))
    vote(x, c) = sum over the k nearest i with label c of  exp(sim(x, i) / T)

Differs from the original: a class without a vote is no guess, where the original's top5 fills up
with arbitrary classes; any number of images works.
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
from nolabel.protocols._options import as_tuples, at_least, build
from nolabel.protocols._scores import TOP, accuracy_rows, labelled_features
from nolabel.protocols.report import Report

USUAL_K = 20  # the one that papers quote
_CHUNK_FLOATS = 2**24  # votes held at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the k-NN protocol."""

    k: tuple[int, ...] = (10, 20, 100, 200)  # neighbours that vote; several are several rows
    temperature: float = 0.07  # T: smaller gives the nearest more weight
    batch_size: int = 256  # images embedded at once

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
    """Guesses the classes of test images by the weighted vote of their neighbours.

    Args:
        train: float [N, D]; need not be of unit length.
        train_labels: int64 [N] in [0, classes).
        test: float [M, D].
        ks: numbers of neighbours; those above N count as N.
        temperature: T.
        classes: number of classes C.

    Returns:
        For each k (after capping): int64 [M, min(5, C)], the classes with most votes, best first;
        -1 where fewer classes got a vote.
    """
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    labels = train_labels.to(train.device)
    kept = sorted({min(k, len(train)) for k in ks})
    guesses: dict[int, list[Tensor]] = {k: [] for k in kept}
    sims, index = nearest(test, train, kept[-1])
    step = max(1, _CHUNK_FLOATS // classes)
    for sim, near in zip(sims.split(step), labels[index].split(step), strict=True):
        # Relative to the nearest: every vote of a row scales alike, and nothing overflows.
        weights = ((sim - sim[:, :1]) / temperature).exp()
        for k in kept:
            votes = weights.new_full((len(sim), classes), 0.0)
            votes.scatter_add_(1, near[:, :k], weights[:, :k])
            voted = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, near[:, :k], True)
            best = votes.masked_fill(~voted, -1).topk(min(TOP, classes), dim=1).indices
            guesses[k].append(best.where(voted.gather(1, best), -1))
    empty = train_labels.new_empty(0, min(TOP, classes))
    return {k: torch.cat(parts) if parts else empty for k, parts in guesses.items()}


def run_knn(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder by k-NN on embeddings of centre views, on its own device.

    Args:
        encoder: the encoder.
        train: labelled images, the neighbours.
        test: labelled images of the same classes.
        features: features of train and test, where they were computed before.
        **options: fields of `Options`.

    Raises:
        DataError: see `labelled_features`.
    """
    o = build(Options, options)
    found, judged, names, notes = labelled_features(encoder, train, test, features, o.batch_size)
    assert found.labels is not None and judged.labels is not None  # noqa: S101
    device = encoder.device
    guesses = knn_predict(
        found.values.to(device),
        found.labels.to(device),
        judged.values.to(device),
        ks=o.k,
        temperature=o.temperature,
        classes=len(names),
    )
    rows = [
        row
        for k, guess in guesses.items()
        for row in accuracy_rows(f"k={k}", guess, judged.labels, len(names))
    ]
    tops = {int(r["setting"][2:]): r for r in rows if r["metric"] == "top1"}
    best_k = min(tops, key=lambda k: abs(math.log(k / USUAL_K)))
    highest = max(tops, key=lambda k: tops[k]["value"])
    usual = "the k that papers quote" if best_k == USUAL_K else f"the nearest to {USUAL_K} here"
    said = f"best is k={best_k}, {usual}, fixed beforehand rather than picked by the test score"
    if tops[highest]["value"] > tops[best_k]["value"]:
        said += f"; to quote k={highest} because it scores highest here would be optimistic"
    if max(o.k) > len(found.values):
        notes = (*notes, f"k is at most the {len(found.values)} images of train")
    return Report(
        protocol="knn",
        encoder=encoder.name,
        train=train.name,
        test=test.name,
        rows=tuple(rows),
        best=tops[best_k],
        notes=(*notes, said),
    )

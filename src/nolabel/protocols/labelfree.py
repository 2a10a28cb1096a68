"""Choosing without labels: what the features themselves say of checkpoints, methods and settings.

    RankMe      exp of the entropy of the features' normalised singular values; more is better
                (Garrido et al., "RankMe", 2023, arXiv 2210.02885)
    LiDAR       the same of the eigenvalues of W^-1/2 B W^-1/2, with B the covariance of the means
                of an image's views and W that of views about their mean, plus delta; more is better
                (Thilak et al., "LiDAR", 2023, arXiv 2312.04000)
    alpha-ReQ   slope at which the eigenvalues of the covariance fall, lambda_j ~ j^-alpha; better
                near 1 (Agrawal et al., "alpha-ReQ", 2022)
    retrieval   share of images one view of which has another view of itself as its nearest among
                those of all images

The first two are divided by what they could be at most. None of them knows what the labels will
be: a benchmark shows how far each agrees with k-NN.

Differs from the originals: views are random crops of 20 to 100 %, mirrored, with changed colour,
whatever the method trained on; alpha is fitted from the second eigenvalue to the last that is above
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.data.progress import progress_bar
from nolabel.data.source import Source, Subset
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, chunks
from nolabel.errors import DataError
from nolabel.nn.knn import nearest
from nolabel.nn.spectrum import effective_number
from nolabel.protocols._options import at_least, build
from nolabel.protocols._scores import wilson
from nolabel.protocols.report import Report
from nolabel.views import FastViews, View, ViewPlan

DELTA = 1e-4  # of LiDAR, on the diagonal of W, relative to its mean
EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the label-free measures."""

    images: int = 1000  # at most this many are used
    views: int = 10  # of each
    seed: int = 0  # of the images chosen and their views
    batch_size: int = 256  # images embedded at once

    def __post_init__(self) -> None:
        at_least(self, images=8, views=2, batch_size=1)


def run_labelfree(
    encoder: Encoder,
    train: Source | None,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder without labels.

    Args:
        encoder: any.
        train: not used.
        test: images; labels are not used.
        features: not used.
        **options: fields of `Options`.

    Raises:
        DataError: fewer than eight images can be read.
    """
    o = build(Options, options)
    chosen = np.random.default_rng(o.seed).permutation(len(test))[: o.images]
    z = embed_views(encoder, Subset(test, np.sort(chosen), test.name), o)  # [N, V, D]
    n, views, dim = z.shape
    flat = z.flatten(0, 1)
    right = self_retrieval(z)
    low, high = wilson(right, n)
    most = min(dim, n)
    rows = [
        _row("RankMe", "share", rankme(z[:, 0]) / most, most),
        _row("LiDAR", "share", lidar(z) / min(dim, n - 1), min(dim, n - 1)),
        _row("alpha-ReQ", "alpha", alpha_req(flat), 0),
        {"setting": "self-retrieval", "metric": "top1", "value": right / n, "low": low,
         "high": high, "chance": 1 / n},
    ]  # fmt: skip
    note = (
        f"{n:,} images, {views} views of each; RankMe and LiDAR as shares of the most that is "
        f"possible ({most} and {min(dim, n - 1)}); alpha is good near 1 (printed as 100 %)"
    )
    return Report(
        protocol="labelfree", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=rows[3], notes=(note,),
    )  # fmt: skip


def _row(name: str, metric: str, value: float, most: int) -> dict[str, Any]:
    out = {"setting": name, "metric": metric, "value": value, "low": None, "high": None}
    return out | ({"most": most} if most else {})


def embed_views(encoder: Encoder, source: Source, o: Options) -> Tensor:
    """Embeddings of random views of every readable image, float32 [N, V, D] on the CPU."""
    colour = encoder.channels == 3
    view = View(
        name="image", count=o.views, size=encoder.size, scale=(0.2, 1.0),
        jitter=(0.4, 0.4, 0.4, 0.1) if colour else (0.4, 0.4, 0.0, 0.0),
        grey=0.2 if colour else 0.0,
    )  # fmt: skip
    plan = ViewPlan(views=(view,), mean=encoder.mean, std=encoder.std)
    make = FastViews(plan, o.seed, device=encoder.device)
    out: list[Tensor] = []
    step = max(o.batch_size // o.views, 1)
    with progress_bar(f"{encoder.name} on {source.name}", len(source), True) as advance:
        for chunk in chunks(source, step):
            if len(chunk.keys):
                x = make(chunk.images, chunk.keys, 0)["image"]  # [V, b, C, S, S]
                z = encoder.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
                out.append(z.transpose(0, 1))
            advance(len(chunk.keys) + len(chunk.skipped))
    if sum(len(z) for z in out) < 8:
        raise DataError(f"{source.name!r} has fewer than eight images that can be read.")
    return torch.cat(out)


def rankme(z: Tensor) -> float:
    """RankMe of features [N, D]: 1 to min(N, D)."""
    return effective_number(torch.linalg.svdvals(z.double()))


def lidar(z: Tensor) -> float:
    """LiDAR of features [N, V, D] of N images in V views: 1 to min(N - 1, D)."""
    z = z.double()
    n, v, dim = z.shape
    means = z.mean(1)
    between = torch.cov(means.T).reshape(dim, dim)
    apart = (z - means[:, None]).flatten(0, 1)
    within = apart.T @ apart / (n * (v - 1))
    within = within + torch.eye(dim, dtype=z.dtype) * (DELTA * within.diagonal().mean() + EPS)
    values, vectors = torch.linalg.eigh(within)
    root = vectors * values.clamp_min(EPS).rsqrt()
    return effective_number(torch.linalg.eigvalsh(root.T @ between @ root).clamp_min(0))


def alpha_req(z: Tensor) -> float:
    """The power with which the eigenvalues of the covariance of features [N, D] fall."""
    z = z.double()
    values = torch.linalg.eigvalsh(torch.cov(z.T).reshape(z.shape[1], -1)).flip(0)
    values = values[values > 1e-8 * values[0]]
    if len(values) < 4:
        return float("inf")
    place = torch.arange(1, len(values) + 1, dtype=z.dtype)[1:].log()
    height = values[1:].log()
    place = place - place.mean()
    return float(-(place @ (height - height.mean())) / (place @ place))


def self_retrieval(z: Tensor) -> int:
    """How many of N images have, with their first view [N, V, D], their own second view as the
    nearest of all second views, by the cosine of features without their mean."""
    z = z - z.mean((0, 1))
    a, b = (F.normalize(z[:, i], dim=1) for i in (0, 1))
    found = nearest(a, b, 1)[1][:, 0]
    return int((found == torch.arange(len(z))).sum())

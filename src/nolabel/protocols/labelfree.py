"""Label-free measures of features, to compare checkpoints, methods and settings.

    RankMe      exp of the entropy of the features' normalised singular values; more is better
                (Garrido et al., "RankMe", 2023, arXiv 2210.02885)
    LiDAR       the same of the eigenvalues of W^-1/2 B W^-1/2, with B the covariance of the means
                of an image's views and W that of views about their mean, plus delta; more is better
                (Thilak et al., "LiDAR", 2023, arXiv 2312.04000)
    alpha-ReQ   slope at which the eigenvalues of the covariance fall, lambda_j ~ j^-alpha; better
                near 1 (Agrawal et al., "alpha-ReQ", 2022)
    retrieval   share of images whose first view has the second view of the same image as its
                nearest neighbour among the second views of all images; also of two small parts of
                an image, and of an image with noise or turned among the unchanged images
    neighbours  share of the ten nearest other images that two views of an image have in common
    turns       how often a linear classifier tells by how many quarter turns an image was turned
                (Reed et al., "SelfAugment", 2021, arXiv 2009.07724)

The first two are divided by their maximum. None of them uses the labels of the later task: a
benchmark shows how far each agrees with k-NN. Methods that compare views are trained for something
like self-retrieval; parts, noise and turns are none of their usual views.

Differs from the originals: views are random crops of 20 to 100 % with flips and colour jitter,
independent of the method's own; alpha is fitted from the second eigenvalue to the last one above
rounding errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nolabel.data.progress import progress_bar
from nolabel.data.readable import Skipped, describe_skipped, leave_out_unreadable
from nolabel.data.source import Source, Subset
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, Images, chunks
from nolabel.errors import DataError
from nolabel.nn.spectrum import effective_number
from nolabel.protocols._invariance import NEIGHBOURS, found, neighbours_kept, turns_told
from nolabel.protocols._options import at_least, build_options
from nolabel.protocols._scores import wilson
from nolabel.protocols.report import Report
from nolabel.views import FastViews, View, ViewPlan

DELTA = 1e-4  # of LiDAR, on the diagonal of W, relative to its mean
EPS = 1e-12
PART = (0.1, 0.3)  # area of a small part, as share of the image
NOISE = 0.1  # standard deviation, as share of the range from black to white
_MOST_CHECKED = 8  # times the images used: of a larger set, not every image is read


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the label-free measures."""

    images: int = 1000  # largest number of images used
    views: int = 10  # of each image
    seed: int = 0  # of the choice of images and of their views
    batch_size: int = 256  # views in a forward pass

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
    """Evaluates an encoder without labels.

    Args:
        encoder: any.
        train: not used.
        test: images; labels are not used.
        features: not used.
        **options: fields of `Options`.

    Raises:
        DataError: fewer than eight images can be read.
    """
    o = build_options(Options, options)
    images, skipped = draw(test, o)
    z, parts, noisy, turned = embed_all(encoder, images, o)  # z: [N, V, D]
    n, views, dim = z.shape
    all_views = z.flatten(0, 1)
    maximum = min(dim, n)
    rows = [
        _row("RankMe", "share", rankme(z[:, 0]) / maximum, maximum),
        _row("LiDAR", "share", lidar(z) / min(dim, n - 1), min(dim, n - 1)),
        _row("alpha-ReQ", "alpha", alpha_req(all_views), 0),
        _found("self-retrieval", self_retrieval(z), n),
        _found("retrieval of parts", found(parts[:, 0], parts[:, 1]), n),
        _found("retrieval with noise", found(noisy[:, 0], turned[:, 0]), n),
        _found("retrieval of turned", found(turned[:, 1], turned[:, 0]), n),
        _row("neighbours kept", "share", neighbours_kept(z[:, 0], z[:, 1]), 0)
        | {"chance": min(NEIGHBOURS / (n - 1), 1.0)},
        _row("turns told", "top1", turns_told(turned), 0) | {"chance": 0.25},
    ]  # fmt: skip
    note = (
        f"{n:,} images, {views} views of each; RankMe and LiDAR as shares of their maximum "
        f"({maximum} and {min(dim, n - 1)}); alpha is good near 1 (printed as 100 %)"
    )
    return Report(
        protocol="labelfree", encoder=encoder.name, train="", test=test.name, rows=tuple(rows),
        best=rows[3], notes=(*describe_skipped(test.name, skipped), note),
    )  # fmt: skip


def _found(name: str, correct: int, n: int) -> dict[str, Any]:
    """The row of a retrieval in which so many of n images were found."""
    low, high = wilson(correct, n)
    return {"setting": name, "metric": "top1", "value": correct / n, "low": low, "high": high,
            "chance": 1 / n}  # fmt: skip


def _row(name: str, metric: str, value: float, maximum: int) -> dict[str, Any]:
    out = {"setting": name, "metric": metric, "value": value, "low": None, "high": None}
    return out | ({"most": maximum} if maximum else {})


def draw(test: Source, o: Options) -> tuple[Source, Skipped]:
    """The images used, all of them readable, and those that could not be read.

    The draw does not depend on bad files, unless the set is so large that checking all is a waste.
    """
    checked, skipped = test, ()
    if len(test) <= _MOST_CHECKED * o.images:
        checked, skipped = leave_out_unreadable(test)
    indices = np.random.default_rng(o.seed).permutation(len(checked))[: o.images]
    drawn, more = leave_out_unreadable(Subset(checked, np.sort(indices), test.name))
    return drawn, (*skipped, *more)


def embed_views(encoder: Encoder, source: Source, o: Options) -> Tensor:
    """Embeds random views of every image that can be read.

    Args:
        encoder: the encoder, used on its own device.
        source: the images.
        o: the protocol's options.

    Returns:
        float32 [N, V, D] on the CPU.

    Raises:
        DataError: fewer than eight images can be read.
    """
    return _embed(encoder, source, o, (_crops(encoder, "image", o.views, (0.2, 1.0)),))


class Embedded(NamedTuple):
    """Features of an image's views, float32 each."""

    crops: Tensor  # [N, V, D], random crops
    parts: Tensor  # [N, 2, D], small random crops
    noisy: Tensor  # [N, 1, D], the whole image with noise
    turned: Tensor  # [N, 4, D], the whole image by 0, 1, 2 and 3 quarter turns


def embed_all(encoder: Encoder, source: Source, o: Options) -> Embedded:
    """Embeds all views that the protocol needs, of every image that can be read.

    Args:
        encoder, source, o: as for `embed_views`.

    Raises:
        DataError: fewer than eight images can be read.
    """
    views = (
        _crops(encoder, "image", o.views, (0.2, 1.0)),
        _crops(encoder, "part", 2, PART),
        View(name="noisy", size=encoder.size, scale=None, flip=0.0, noise=1.0,
             noise_sigma=(NOISE, NOISE)),
        View(name="whole", size=encoder.size, scale=None, flip=0.0),
    )  # fmt: skip
    z = _embed(encoder, source, o, views, turned=True)
    return Embedded(*z.split((o.views, 2, 1, 4), dim=1))


def _crops(encoder: Encoder, name: str, count: int, scale: tuple[float, float]) -> View:
    """Random crops with flips and changes of colour."""
    coloured = encoder.channels == 3
    return View(
        name=name, count=count, size=encoder.size, scale=scale,
        jitter=(0.4, 0.4, 0.4, 0.1) if coloured else (0.4, 0.4, 0.0, 0.0),
        grey=0.2 if coloured else 0.0,
    )  # fmt: skip


def _embed(
    encoder: Encoder, source: Source, o: Options, views: tuple[View, ...], *, turned: bool = False
) -> Tensor:
    """Embeds views, in their order: float32 [N, V, D]. The last one may be turned to all sides."""
    plan = ViewPlan(views=views, mean=encoder.mean, std=encoder.std)
    views_of = FastViews(plan, o.seed, device=encoder.device)

    def make(images: Images, keys: np.ndarray) -> Tensor:
        made = views_of(images, keys, 0)
        every = [made[view.name] for view in views]  # [V, B, C, S, S] each
        if turned:
            every += [every[-1].rot90(k, (-2, -1)) for k in (1, 2, 3)]
        return torch.cat(every).transpose(0, 1)

    out: list[Tensor] = []
    count = sum(view.count for view in views) + 3 * turned
    images_at_once = max(o.batch_size // count, 1)
    with progress_bar(f"{encoder.name} on {source.name}", len(source), True) as advance:
        for chunk in chunks(source, images_at_once, make):
            if chunk.x is not None:
                x = chunk.x.transpose(0, 1)  # [V, b, C, S, S]
                z = encoder.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
                out.append(z.transpose(0, 1))
            advance(len(chunk.keys) + len(chunk.skipped))
    if sum(len(z) for z in out) < 8:
        raise DataError(f"{source.name!r} has fewer than eight images that can be read.")
    return torch.cat(out)


def rankme(z: Tensor) -> float:
    """RankMe of features float [N, D], in 1..min(N, D)."""
    return effective_number(torch.linalg.svdvals(z.double()))


def lidar(z: Tensor) -> float:
    """LiDAR of features float [N, V, D] of N images in V views, in 1..min(N - 1, D)."""
    z = z.double()
    n, v, dim = z.shape
    means = z.mean(1)
    apart = (means - means.mean(0)).T / (n - 1) ** 0.5  # [D, N]; times its transpose: B
    deviations = (z - means[:, None]).flatten(0, 1)
    within = deviations.T @ deviations / (n * (v - 1))
    within = within + torch.eye(dim, dtype=z.dtype) * (DELTA * within.diagonal().mean() + EPS)
    # With W = L L^T: the eigenvalues of W^-1/2 B W^-1/2, but for zeros where D > N.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), apart, upper=False)
    return effective_number(_squared_singular_values(whitened))


def alpha_req(z: Tensor) -> float:
    """Exponent alpha of the power law of the covariance's eigenvalues, of features float [N, D].

    Infinite with fewer than four eigenvalues above rounding errors.
    """
    z = z.double()
    values = _squared_singular_values(z - z.mean(0)).flip(0)
    values = values[values > 1e-8 * values[0]]
    if len(values) < 4:
        return float("inf")
    log_rank = torch.arange(1, len(values) + 1, dtype=z.dtype)[1:].log()
    log_value = values[1:].log()
    log_rank = log_rank - log_rank.mean()
    return float(-(log_rank @ (log_value - log_value.mean())) / (log_rank @ log_rank))


def _squared_singular_values(x: Tensor) -> Tensor:
    """Of a matrix float64 [R, C], min(R, C) of them, ascending and at least 0."""
    smaller = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    return torch.linalg.eigvalsh(smaller).clamp_min(0)


def self_retrieval(z: Tensor) -> int:
    """Number of images whose first view has their own second view as nearest neighbour.

    Among the second views of all images, after subtracting the mean of all views; see `found`.

    Args:
        z: float [N, V, D].
    """
    return found(z[:, 0], z[:, 1], z.mean((0, 1)))

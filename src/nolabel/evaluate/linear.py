"""A linear classifier on frozen features: all learning rates at once, one chosen on held-out data.

Rates swept together over one frozen pass: Oquab et al., DINOv2, 2023 (`linear.py`).  BatchNorm
without affine parameters before the classifier: He et al., Masked Autoencoders, 2022.

Differs from both: the features are of centre views, computed once, where the papers draw a random
crop and flip in every epoch; BatchNorm uses the whole training set's statistics; the rate is
chosen on a tenth of train and the classifier fitted again on all of it, where DINOv2 picks on the
validation set that it reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nolabel.data.sources import Source, Subset, split
from nolabel.errors import DataError, UsageError
from nolabel.evaluate.scores import TOP, accuracy_rows, labelled_features
from nolabel.features import Features
from nolabel.types import Report
from nolabel.weights.encoder import Encoder

MOMENTUM = 0.9
INIT_STD = 0.01  # of the weights; biases start at 0
EPS = 1e-6  # of BatchNorm, as in MAE
_CHUNK_FLOATS = 2**24  # logits held at once


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the linear protocol."""

    # Learning rates to try, as they are: not scaled by the batch size.
    lr: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    epochs: int = 100  # passes over the features
    features_per_step: int = 256  # batch size of the classifier
    batchnorm: bool = True  # bring every feature to mean 0 and deviation 1 first (MAE)
    held_out: float = 0.1  # share of every class of train that chooses the rate
    seed: int = 0  # of initial weights, order and division
    batch_size: int = 256  # images embedded at once

    def __post_init__(self) -> None:
        rates = (self.lr,) if isinstance(self.lr, int | float) else tuple(self.lr)
        object.__setattr__(self, "lr", tuple(sorted({float(v) for v in rates})))
        if not rates or not all(v > 0 and math.isfinite(v) for v in self.lr):
            raise UsageError(f"lr must be numbers above 0, got {rates!r}.")
        for name in ("epochs", "features_per_step", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out must lie between 0 and 1, got {self.held_out}.")


@dataclass(frozen=True)
class Heads:
    """Linear classifiers that share their input.  H heads, D features, K classes."""

    mean: Tensor  # [D], subtracted from the features
    scale: Tensor  # [D], then multiplied
    weight: Tensor  # [H, D, K]
    bias: Tensor  # [H, K]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [H, N, K] of features [N, D]."""
        return torch.baddbmm(
            self.bias[:, None],
            ((x - self.mean) * self.scale).expand(len(self.weight), -1, -1),
            self.weight,
        )


@torch.no_grad()
def fit_heads(
    x: Tensor,
    labels: Tensor,
    rates: Sequence[float],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    batchnorm: bool,
    seed: int,
) -> Heads:
    """Trains a linear classifier with each of H learning rates, side by side.

    Cross-entropy, SGD with momentum 0.9, no weight decay, cosine to 0 over all steps.  The heads
    start from the same weights and see the same batches.  The gradient is written out
    (softmax - one-hot), so a step is two matrix products for all heads together.

    Args:
        x: float [N, D].
        labels: int64 [N] in [0, classes).
        rates: H peak learning rates.
        classes: Number of classes K.
        epochs: Passes over the features.
        batch_size: Features in a step; the last of an epoch that do not fill a batch wait.
        batchnorm: Whether each feature is standardised by its mean and deviation over x.
        seed: Of weights and order.
    """
    device, (n, dim), heads = x.device, x.shape, len(rates)
    chance = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
    mean, scale = x.new_zeros(dim), x.new_ones(dim)
    if batchnorm:
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        scale = (variance + EPS).rsqrt()
        x = (x - mean) * scale
    start = torch.randn(classes, dim, generator=chance) * INIT_STD
    # All heads below each other, [H * K, D]: one product serves them all.  Classes come before
    # the batch, because softmax over the last axis is many times slower when it is short.
    weight = start.repeat(heads, 1).to(device, x.dtype)
    bias = x.new_zeros(heads * classes, 1)
    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    rate = torch.tensor(rates, dtype=x.dtype).repeat_interleave(classes)[:, None].to(device)
    batch = min(batch_size, n)
    per_epoch = n // batch
    total = epochs * per_epoch
    order = torch.empty(0)
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=chance).to(device)
        at = step % per_epoch * batch
        rows = order[at : at + batch]
        some = x[rows]
        probability = torch.addmm(bias, weight, some.T).view(heads, classes, batch).softmax(1)
        hit = labels[rows].expand(heads, 1, batch)
        probability.scatter_add_(1, hit, probability.new_full(hit.shape, -1.0))
        error = probability.view(-1, batch).div_(batch)  # gradient of the loss by the logits
        weight_speed.mul_(MOMENTUM).addmm_(error, some)
        bias_speed.mul_(MOMENTUM).add_(error.sum(1, keepdim=True))
        lr = rate * (0.5 * (1 + math.cos(math.pi * step / total)))
        weight.sub_(weight_speed * lr)
        bias.sub_(bias_speed * lr)
    split_heads = weight.view(heads, classes, dim).transpose(1, 2).contiguous()
    return Heads(mean, scale, split_heads, bias.view(heads, classes))


@torch.no_grad()
def score_heads(heads: Heads, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Share of right answers and mean cross-entropy of each head, both float64 [H].

    Args:
        heads: The classifiers.
        x: float [N, D].
        labels: int64 [N].
    """
    right = torch.zeros(len(heads.weight), dtype=torch.float64)
    loss = torch.zeros_like(right)
    step = max(1, _CHUNK_FLOATS // heads.bias.numel())
    for rows, own in zip(x.split(step), labels.split(step), strict=True):
        logits = heads(rows)  # [H, n, K]
        right += (logits.argmax(-1) == own).sum(1).cpu()
        picked = logits.gather(2, own.expand(len(logits), -1)[..., None])[..., 0]
        loss += (logits.logsumexp(-1) - picked).double().sum(1).cpu()
    return right / len(x), loss / len(x)


def run_linear(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: Any,
) -> Report:
    """Judges an encoder by a linear classifier on its frozen embeddings.

    Args:
        encoder: The encoder.
        train: Labelled images, to fit on.
        test: Labelled images of the same classes; used once, at the end.
        features: Those of train and test, when they are there already.
        **options: Fields of `Options`.

    Raises:
        DataError: See `labelled_features`; or no class has two images in train.
    """
    o = Options(**options)
    found, judged, names, notes = labelled_features(encoder, train, test, features, o.batch_size)
    assert found.labels is not None and judged.labels is not None  # noqa: S101
    head, rate, chosen = fitted(found, Subset(train, found.keys.numpy()), len(names), o,
                                encoder.device)  # fmt: skip
    notes, device = (*notes, *chosen), encoder.device
    ranked = [
        head(rows.to(device))[0].topk(min(TOP, len(names)), dim=1).indices.cpu()
        for rows in judged.values.split(max(1, _CHUNK_FLOATS // len(names)))
    ]
    rows = accuracy_rows(f"lr={rate:g}", torch.cat(ranked), judged.labels, len(names))
    deviation = (
        "features of centre views, computed once, without augmentation: the papers train on "
        "random crops and flips, so their figures are not quite comparable"
    )
    return Report(
        protocol="linear",
        encoder=encoder.name,
        train=train.name,
        test=test.name,
        rows=tuple(rows),
        best=rows[0],
        notes=(*notes, deviation),
    )


def fitted(
    found: Features, kept: Subset, classes: int, o: Options, device: torch.device
) -> tuple[Heads, float, tuple[str, ...]]:
    """One classifier on features with labels: the rate chosen on held-out ones, then all of them.

    Args:
        found: Of train.
        kept: Their images, for the division.
        classes: Number of classes K.
        o: The protocol's options.
        device: Where it is fitted.

    Returns:
        The classifier (H = 1), its rate, and notes.
    """
    assert found.labels is not None  # noqa: S101 - asked of the source
    x, y = found.values.to(device), found.labels.to(device)
    settings: dict[str, Any] = {
        "classes": classes,
        "epochs": o.epochs,
        "batch_size": o.features_per_step,
        "batchnorm": o.batchnorm,
        "seed": o.seed,
    }
    if len(o.lr) == 1:
        return fit_heads(x, y, o.lr, **settings), o.lr[0], ()
    rate, note = _choose(x, y, kept, o, settings)
    return fit_heads(x, y, [rate], **settings), rate, (note,)


def _choose(
    x: Tensor, y: Tensor, kept: Subset, o: Options, settings: dict[str, Any]
) -> tuple[float, str]:
    """The rate that does best on held-out images of train, and a note about it."""
    rest, held = (torch.from_numpy(s.indices).to(x.device) for s in split(kept, o.held_out, o.seed))
    if not len(held):
        raise DataError(
            f"{kept.name!r} has one image a class, so none can be held out to choose the learning "
            "rate.  Give one rate, such as --lr 0.1, or more images."
        )
    heads = fit_heads(x[rest], y[rest], o.lr, **settings)
    right, loss = score_heads(heads, x[held], y[held])
    order = sorted(range(len(o.lr)), key=lambda i: (-float(right[i]), float(loss[i])))
    best = order[0]
    note = (
        f"learning rate {o.lr[best]:g} chosen of {len(o.lr)} on {len(held)} held-out images of "
        f"train ({float(right[best]):.1%} right there), then fitted on all of train"
    )
    if best in (0, len(o.lr) - 1):
        note += "; it lies at the edge of the rates tried, so a better one may lie beyond"
    return o.lr[best], note

"""Linear classifiers on fixed features, many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM = 0.9
INIT_STD = 0.01  # of the weights; biases start at 0
EPS = 1e-6  # of BatchNorm, as in MAE
LARS_TRUST = 0.001
CHUNK_FLOATS = 2**24  # logits held at once


@dataclass(frozen=True)
class Heads:
    """Linear classifiers that share their input. H heads, D features, K classes."""

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
    lars: bool = False,
) -> Heads:
    """Trains a linear classifier with each of H learning rates, side by side.

    Cross-entropy, SGD with momentum 0.9, no weight decay, cosine to 0 over all steps. The heads
    start from the same weights and see the same batches. The gradient is written out
    (softmax - one-hot), so a step is two matrix products for all heads together.

    Args:
        x: float [N, D].
        labels: int64 [N] in [0, classes).
        rates: H peak learning rates.
        classes: number of classes K.
        epochs: passes over the features.
        batch_size: features in a step; the last of an epoch that do not fill a batch wait.
        batchnorm: whether each feature is standardised by its mean and deviation over x.
        seed: of weights and order.
        lars: whether each head's rate is scaled by LARS_TRUST * |weight| / |its gradient|, but not
            that of its bias (You et al., "Large Batch Training of Convolutional Networks", 2017).
    """
    device, (n, dim), heads = x.device, x.shape, len(rates)
    chance = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
    mean, scale = x.new_zeros(dim), x.new_ones(dim)
    if batchnorm:
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        scale = (variance + EPS).rsqrt()
        x = (x - mean) * scale
    start = torch.randn(classes, dim, generator=chance) * INIT_STD
    # All heads below each other, [H * K, D]: one product serves them all. Classes come before
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
        slope = error @ some
        if lars:
            slope.view(heads, -1).mul_(_trust(weight.view(heads, -1), slope.view(heads, -1)))
        weight_speed.mul_(MOMENTUM).add_(slope)
        bias_speed.mul_(MOMENTUM).add_(error.sum(1, keepdim=True))
        lr = rate * (0.5 * (1 + math.cos(math.pi * step / total)))
        weight.sub_(weight_speed * lr)
        bias.sub_(bias_speed * lr)
    split_heads = weight.view(heads, classes, dim).transpose(1, 2).contiguous()
    return Heads(mean, scale, split_heads, bias.view(heads, classes))


def _trust(weight: Tensor, slope: Tensor) -> Tensor:
    """LARS's factor of each head, [H, 1]; 1 where a norm is zero."""
    w, g = weight.norm(dim=1, keepdim=True), slope.norm(dim=1, keepdim=True)
    return torch.where((w > 0) & (g > 0), LARS_TRUST * w / g, torch.ones_like(w))


@torch.no_grad()
def score_heads(heads: Heads, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Share of right answers and mean cross-entropy of each head, both float64 [H].

    Args:
        heads: the classifiers.
        x: float [N, D].
        labels: int64 [N].
    """
    right = torch.zeros(len(heads.weight), dtype=torch.float64)
    loss = torch.zeros_like(right)
    step = max(1, CHUNK_FLOATS // heads.bias.numel())
    for rows, own in zip(x.split(step), labels.split(step), strict=True):
        logits = heads(rows)  # [H, n, K]
        right += (logits.argmax(-1) == own).sum(1).cpu()
        picked = logits.gather(2, own.expand(len(logits), -1)[..., None])[..., 0]
        loss += (logits.logsumexp(-1) - picked).double().sum(1).cpu()
    return right / len(x), loss / len(x)

"""Linear classifiers on frozen features, trained with several learning rates in parallel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM = 0.9
INIT_STD = 0.01  # of the weights; biases are initialised to 0
EPS = 1e-6  # of BatchNorm, as in MAE
LARS_TRUST = 0.001
CHUNK_FLOATS = 2**24  # logits in memory at once


@dataclass(frozen=True)
class Heads:
    """H linear classifiers of D features into K classes.

    Attributes:
        mean: float [D], subtracted from the features.
        scale: float [D], by which they are multiplied afterwards.
        weight: float [H, D, K].
        bias: float [H, K].
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Logits float [H, N, K] of features float [N, D]."""
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
    """Trains a linear classifier with each of H learning rates in parallel.

    Cross-entropy, SGD with momentum 0.9, no weight decay, cosine schedule to 0 over all steps. The
    heads have the same initial weights and batches. The gradient is computed in closed form
    (softmax - one-hot), so a step is two matrix products for all heads.

    Args:
        x: float [N, D].
        labels: int64 [N] in [0, classes).
        rates: H peak learning rates.
        classes: number of classes K.
        epochs: passes over the features.
        batch_size: features in a step; an incomplete last batch of an epoch is dropped.
        batchnorm: whether each feature is standardised by its mean and standard deviation over x.
        seed: seed of initial weights and order.
        lars: whether the learning rate of each head's weight (not of its bias) is scaled by
            LARS_TRUST * |weight| / |gradient| (You et al., "Large Batch Training of Convolutional
            Networks", 2017).
    """
    device, (n, dim), heads = x.device, x.shape, len(rates)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
    mean, scale = x.new_zeros(dim), x.new_ones(dim)
    if batchnorm:
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        scale = (variance + EPS).rsqrt()
        x = (x - mean) * scale
    initial = torch.randn(classes, dim, generator=generator) * INIT_STD
    # All heads stacked, [H * K, D], for a single matrix product. Logits are [H, K, B]: softmax
    # over a short last axis is many times slower.
    weight = initial.repeat(heads, 1).to(device, x.dtype)
    bias = x.new_zeros(heads * classes, 1)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    rate = torch.tensor(rates, dtype=x.dtype).repeat_interleave(classes)[:, None].to(device)
    batch = min(batch_size, n)
    steps_per_epoch = n // batch
    total = epochs * steps_per_epoch
    order = torch.empty(0)
    for step in range(total):
        if step % steps_per_epoch == 0:
            order = torch.randperm(n, generator=generator).to(device)
        offset = step % steps_per_epoch * batch
        rows = order[offset : offset + batch]
        features = x[rows]
        probability = torch.addmm(bias, weight, features.T).view(heads, classes, batch).softmax(1)
        target = labels[rows].expand(heads, 1, batch)
        probability.scatter_add_(1, target, probability.new_full(target.shape, -1.0))
        error = probability.view(-1, batch).div_(batch)  # d loss / d logits
        gradient = error @ features
        if lars:
            gradient.view(heads, -1).mul_(
                _lars_scale(weight.view(heads, -1), gradient.view(heads, -1))
            )
        weight_velocity.mul_(MOMENTUM).add_(gradient)
        bias_velocity.mul_(MOMENTUM).add_(error.sum(1, keepdim=True))
        lr = rate * (0.5 * (1 + math.cos(math.pi * step / total)))
        weight.sub_(weight_velocity * lr)
        bias.sub_(bias_velocity * lr)
    split_heads = weight.view(heads, classes, dim).transpose(1, 2).contiguous()
    return Heads(mean, scale, split_heads, bias.view(heads, classes))


def _lars_scale(weight: Tensor, gradient: Tensor) -> Tensor:
    """LARS trust ratio of each head, float [H, 1]; 1 where a norm is zero."""
    w, g = weight.norm(dim=1, keepdim=True), gradient.norm(dim=1, keepdim=True)
    return torch.where((w > 0) & (g > 0), LARS_TRUST * w / g, torch.ones_like(w))


@torch.no_grad()
def score_heads(heads: Heads, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy of each head.

    Args:
        heads: the classifiers.
        x: float [N, D].
        labels: int64 [N].

    Returns:
        Accuracies in 0..1 and cross-entropies, both float64 [H] on the CPU.
    """
    correct = torch.zeros(len(heads.weight), dtype=torch.float64)
    loss = torch.zeros_like(correct)
    rows_at_once = max(1, CHUNK_FLOATS // heads.bias.numel())
    for rows, part_labels in zip(x.split(rows_at_once), labels.split(rows_at_once), strict=True):
        logits = heads(rows)  # [H, n, K]
        correct += (logits.argmax(-1) == part_labels).sum(1).cpu()
        label_logits = logits.gather(2, part_labels.expand(len(logits), -1)[..., None])[..., 0]
        loss += (logits.logsumexp(-1) - label_logits).double().sum(1).cpu()
    return correct / len(x), loss / len(x)

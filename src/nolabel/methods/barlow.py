"""Barlow Twins: self-supervised learning via redundancy reduction.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021,
arXiv 2103.03230.

Two views of each of N images give embeddings z1, z2 [N, D]. Each dimension is normalised over the
batch to mean 0 and variance 1; C = z1^T z2 / N [D, D] is their cross-correlation. Its target is the
identity: each dimension agrees between the views, different dimensions are decorrelated.

    loss = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2                        (eq. 1)

No negatives, no teacher: a constant embedding cannot have C_ii = 1. The embeddings of all ranks are
all-gathered with gradient, so that C and its gradient are those of the whole batch.

Differs from the original:
  - the official code all-reduces C outside autograd, so that its gradient is 1/W of the whole
    batch's, W the number of ranks; here it is the full one (LARS does not depend on this scale);
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nolabel.backbones.base import Backbone
from nolabel.limits import Count, NotNegative
from nolabel.methods.base import Contrastive, Recipe, RecipeContext
from nolabel.nn.contrastive import cross_correlation, pair_signals
from nolabel.nn.projectors import mlp
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import two_views


def redundancy_loss(c: Tensor, weight: float) -> Tensor:
    """Equation 1 of a cross-correlation matrix."""
    diagonal = torch.diagonal(c)
    return (diagonal - 1).square().sum() + weight * (c.square().sum() - diagonal.square().sum())


class BarlowTwins(Contrastive):
    """Redundancy reduction: the cross-correlation of two views becomes the identity."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Barlow Twins' own options; defaults are the paper's for ResNet-50 on ImageNet."""

        weight: NotNegative = 0.0051  # lambda, of the redundancy term
        hidden: Count = 8192  # width of the projector's two hidden layers
        projection: Count = 8192  # D, width of the embeddings
        scale: tuple[float, float] = (0.08, 1.0)  # area of the crops, as share of the image
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a greyscale view
        blur: tuple[float, float] = (1.0, 0.1)  # probability of blur, for each view
        solarise: tuple[float, float] = (0.0, 0.2)  # probability of solarising, for each view
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        self.backbone = backbone
        self.projector = mlp((backbone.dim, o.hidden, o.hidden, o.projection), bias=False)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return two_views(image_size, options, blur=options.blur, solarise=options.solarise)

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        return (torch.stack([self.backbone(x) for x in batch.views["view"]]),)  # [2, B, D]

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        (h,) = features  # [2, B, D]
        z1, z2 = (self.projector(x).float() for x in h)  # each view has its batch norm
        c = cross_correlation(z1, z2)
        logs = pair_signals(z1, z2) | {"correlation": torch.diagonal(c).mean().detach()}
        return Step(redundancy_loss(c, self.options.weight), logs, features=h[0].detach())

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ResNet-50, 1000 epochs, batch 2048, LARS with a rate of their own for biases."""
        batch = context.batch_size or 2048
        lr = 0.2 * batch / 256
        optim = Optim(
            name="lars", lr=lr, lr_plain=0.0048 * batch / 256, warmup_epochs=10, lr_end=lr * 0.001,
            weight_decay=1e-6,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=1000)

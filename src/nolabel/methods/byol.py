"""BYOL: bootstrap your own latent.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", 2020,
arXiv 2006.07733.

An online network (encoder f, projector g, predictor q) and a target network (encoder and projector
of the same architecture) see two views x1, x2 of an image. The online network predicts the
target's projection of the other view:

    loss = mean over images of  |q1/|q1| - z2'/|z2'||^2 + |q2/|q2| - z1'/|z1'||^2        (eq. 2)
         = mean of (2 - 2 cos(q1, z2')) + (2 - 2 cos(q2, z1'))
    target <- tau target + (1 - tau) online,  tau from tau_0 to 1 by half a cosine       (eq. 1)

No gradient reaches the target; without the predictor, or with gradient through the target, all
embeddings become the same.

Differs from the original:
  - online and target start equal (the official code draws them from different seeds);
  - under gradient accumulation batch norm takes its statistics per micro-batch;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.limits import Count, Share
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn.contrastive import pair_signals
from nolabel.nn.projectors import mlp
from nolabel.nn.schedules import momentum
from nolabel.nn.state import Ema
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import two_views


def regression_loss(q: Tensor, z: Tensor) -> Tensor:
    """Mean over images of the squared distance of unit vectors, 2 - 2 cos(q, z); [B, D] both."""
    return 2 - 2 * F.cosine_similarity(q.float(), z.float(), dim=-1).mean()


class BYOL(Method):
    """Bootstrap your own latent: predict a moving average of yourself, without negatives."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """BYOL's own options; defaults are the paper's for ResNet-50 on ImageNet."""

        hidden: Count = 4096  # width of the hidden layer of projector and predictor
        projection: Count = 256  # width of z and q
        projection_norm: bool = False  # batch norm after the projector's last layer (as SimSiam)
        target_momentum: Share = 0.996  # tau_0 (0.99 for 300 epochs and less); 1 in the last step
        stop_gradient: bool = True  # False: gradient through the target, to study collapse
        scale: tuple[float, float] = (0.08, 1.0)  # area of the crops, as share of the image
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a greyscale view
        blur: tuple[float, float] = (1.0, 0.1)  # probability of blur, for each view
        solarise: tuple[float, float] = (0.0, 0.2)  # probability of solarising, for each view
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        widths = (backbone.dim, o.hidden, o.projection)
        projector = mlp(widths, last_bias=False, last_norm=o.projection_norm)
        self.online: Any = nn.Sequential(backbone, projector)
        self.target = Ema(self.online)  # initially equal
        self.predictor = mlp((o.projection, o.hidden, o.projection), last_bias=False)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return two_views(image_size, options, blur=options.blur, solarise=options.solarise)

    def step(self, batch: Batch, clock: Clock) -> Step:
        x1, x2 = batch.views["view"]
        h1, h2 = self.online[0](x1), self.online[0](x2)
        p1, p2 = self.online[1](h1), self.online[1](h2)
        q1, q2 = self.predictor(p1), self.predictor(p2)
        # The target's batch norm uses batch statistics, as in the official code.
        z1, z2 = (self.target(x1), self.target(x2)) if self.options.stop_gradient else (p1, p2)
        loss = regression_loss(q1, z2) + regression_loss(q2, z1)
        logs = pair_signals(q1, z2) | {"target_momentum": self.momentum(clock)}
        return Step(loss, logs, features=h1.detach())

    def momentum(self, clock: Clock) -> float:
        """tau of this step: the weight of the old target."""
        return momentum(self.options.target_momentum, clock)

    @torch.no_grad()
    def after_update(self, clock: Clock) -> None:
        self.target.follow(self.online, self.momentum(clock))

    @property
    def encoder(self) -> Backbone:
        """The online encoder, which the paper evaluates."""
        return self.online[0]

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ResNet-50, 1000 epochs, batch 4096, LARS."""
        batch = context.batch_size or 4096
        optim = Optim(
            name="lars", lr=0.2 * batch / 256, warmup_epochs=10, lr_end=0.0, weight_decay=1.5e-6
        )
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=1000)

"""SimCLR: a simple framework for contrastive learning.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
arXiv 2002.05709.

Two random views of each of N images give 2N embeddings z = g(f(x)) of unit length. Each one is
classified among the other 2N - 1, of which the other view j is the right one:

    l(i, j) = -log( exp(z_i . z_j / T) / sum over k != i of exp(z_i . z_k / T) )        (eq. 1)
    loss    = mean over the 2N anchors

f is the encoder, g the projection head, which is discarded after training. The embeddings of other
ranks are negatives too, all-gathered with gradient.

Differs from the original:
  - the official code sums the two views' means, twice the paper's equation 1, which is used here;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.backbones.base import Backbone
from nolabel.limits import Count, NotNegative, Positive
from nolabel.methods.base import Contrastive, Recipe, RecipeContext
from nolabel.nn.contrastive import nt_xent, pair_signals
from nolabel.nn.projectors import ProjectionHead
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import two_views


class SimCLR(Contrastive):
    """Contrastive learning with two views and in-batch negatives."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """SimCLR's own options; defaults are the paper's for ResNet-50 on ImageNet."""

        temperature: Positive = 0.1  # T
        hidden: Count = 2048  # width of the projection head's hidden layer
        projection: Count = 128  # width of z
        scale: tuple[float, float] = (0.08, 1.0)  # area of the crops, as share of the image
        strength: NotNegative = 1.0  # s: jitter is s * (0.8, 0.8, 0.8, 0.2) with probability 0.8
        hue: float = 0.2  # largest hue shift at s = 1, in turns
        grey: float = 0.2  # probability of a greyscale view
        blur: float = 0.5  # probability of blur
        solarise: float = 0.0  # probability of solarising
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        self.backbone = backbone
        self.head = ProjectionHead(backbone.dim, options.hidden, options.projection)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o, s = options, options.strength
        jitter = (0.8 * s, 0.8 * s, 0.8 * s, min(o.hue * s, 0.5))
        return two_views(image_size, o, blur=(o.blur,), solarise=(o.solarise,), jitter=jitter)

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        x = batch.views["view"]  # [2, B, C, H, W]
        return (self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2]),)

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        (h,) = features  # [2, B, D]
        z = F.normalize(self.head(h.flatten(0, 1)).float(), dim=-1)  # [2B, projection]
        z1, z2 = z.chunk(2)
        loss = nt_xent(z1, z2, self.options.temperature)
        return Step(loss, pair_signals(z1, z2), features=h[0].detach())

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ResNet-50, 100 epochs, batch 4096, LARS."""
        batch = context.batch_size or 4096
        optim = Optim(
            name="lars", lr=0.3 * batch / 256, warmup_epochs=10, lr_end=0.0, weight_decay=1e-6
        )
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=100)

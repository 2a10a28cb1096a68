"""Triplet loss with mining, on two views of each image.

Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering" (the loss and
semi-hard mining), 2015, arXiv 1503.03832; Hermans et al., "In Defense of the Triplet Loss for
Person Re-Identification" (batch-hard mining), 2017, arXiv 1703.07737.

Without labels a view a and the other view p of the same image are the positive pair; all views n
of other images are negatives. With unit embeddings and d(x, y) = |x - y|:

    loss = mean over anchors and their negatives of  max(0, d(a, p) - d(a, n) + m)

    "all"        every negative counts
    "semi-hard"  the nearest negative that is farther than the positive; if there is none, the
                 farthest negative
    "hard"       the nearest negative (batch-hard)

The mean includes triplets whose loss is zero. The views of all ranks are negatives, all-gathered
with gradient.

Differs from the original:
  - views of one image take the place of faces of one person, so an anchor has a single positive;
  - distances are not squared (FaceNet's are; Hermans et al. found the plain ones more stable);
  - there is no paper without labels to take settings from: both recipes are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.backbones.base import Backbone
from nolabel.errors import unknown
from nolabel.limits import Count, Positive
from nolabel.methods.base import Contrastive, Recipe, RecipeContext
from nolabel.nn.contrastive import pair_signals, view_distances
from nolabel.nn.projectors import mlp
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import two_views

MINING = ("all", "semi-hard", "hard")


def triplet_loss(d: Tensor, same: Tensor, margin: float, mining: str) -> Tensor:
    """The triplet loss of N anchors among M views, exactly two of each image.

    Args:
        d: distances [N, M].
        same: bool [N, M], whether two views show the same image.
        margin: m.
        mining: one of `MINING`.

    Returns:
        Scalar: mean over the anchors, and for "all" over their negatives too.
    """
    # One of the two views of an anchor's image is the anchor itself, at distance (almost) 0.
    positive = d.masked_fill(~same, 0.0).amax(1, keepdim=True)
    if mining == "all":
        return F.relu(positive - d + margin)[~same].mean()
    nearest = d.masked_fill(same, torch.inf).amin(1, keepdim=True)
    if mining == "semi-hard":
        semi_hard = d.masked_fill(same | (d <= positive), torch.inf).amin(1, keepdim=True)
        farthest = d.masked_fill(same, -torch.inf).amax(1, keepdim=True)
        nearest = torch.where(semi_hard.isinf(), farthest, semi_hard)
    return F.relu(positive - nearest + margin).mean()


class Triplet(Contrastive):
    """Triplet loss: two views of an image nearer than any view of another one, by a margin."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The triplet loss's own options."""

        margin: Positive = 0.2  # m, a distance between unit vectors, in (0, 2]
        mining: str = "semi-hard"  # all, semi-hard or hard (hard may collapse early)
        hidden: Count = 2048  # width of the head's hidden layer
        projection: Count = 128  # width of the embedding that is compared
        scale: tuple[float, float] = (0.2, 1.0)  # area of the crops, as share of the image
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a greyscale view
        blur: float = 0.5  # probability of blur
        solarise: float = 0.0  # probability of solarising
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        if o.mining not in MINING:
            raise unknown("mining", o.mining, MINING)
        self.backbone = backbone
        self.head = mlp((backbone.dim, o.hidden, o.projection))

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return two_views(image_size, options, blur=(options.blur,), solarise=(options.solarise,))

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        x = batch.views["view"]  # [2, B, C, H, W]
        return (self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2]),)

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        (h,) = features  # [2, B, D]
        z = F.normalize(self.head(h.flatten(0, 1)).float(), dim=-1)
        z = z.unflatten(0, h.shape[:2])  # [2, B, projection]
        d, same = view_distances(z)
        loss = triplet_loss(d, same, self.options.margin, self.options.mining)
        return Step(loss, pair_signals(z[0], z[1]), features=h[0].detach())

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """The papers' loss; they train with labels, so optimiser and length are ours."""
        batch = context.batch_size or max(min(256, context.images // 4), 2)
        optim = Optim(
            lr=3e-3 if context.conv else 1e-3, warmup_epochs=10, lr_end=0.0, weight_decay=0.05
        )
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=200)

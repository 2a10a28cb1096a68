"""SwAV: swapping assignments between views.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020,
arXiv 2006.09882.

Every crop of an image becomes a unit vector z and is compared with K unit prototypes c: scores
s = z . c. The two global crops are assigned to prototypes by Sinkhorn-Knopp, which gives every
prototype an equal share of the batch; all other crops predict that assignment:

    q    = Sinkhorn(s / epsilon), 3 iterations, without gradient                    (eq. 3 and 5)
    loss = mean over assigning crops t, and crops v != t, of  -sum_K q_t log softmax(s_v / tau)
                                                                                    (eq. 2 and 6)

With small batches a queue of earlier embeddings of each global crop takes part in the assignment,
not in the loss. Prototypes have unit length and are frozen in the first steps.

Differs from the original:
  - Sinkhorn works on logarithms (the official code's exponential overflows in half precision);
  - new embeddings are enqueued after the update; the queue has those of all ranks, and each rank
    assigns its share of them;
  - batch norm uses the images of all ranks (in the official code of groups of ranks);
  - under gradient accumulation the shares are equal within each micro-batch;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.resnet import ResNet
from nolabel.limits import Count, NotNegative, Positive, Whole
from nolabel.methods.base import HasPrototypes, Method, Recipe, RecipeContext
from nolabel.nn.assignment import prototype_scores, sinkhorn
from nolabel.nn.losses import cross_entropy_views, target_signals
from nolabel.nn.projectors import mlp
from nolabel.nn.queue import Queue
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import multi_crop
from nolabel.views.swav_crops import SwAVCrops


class SwAV(Method, HasPrototypes):
    """Swapped assignments: predict the prototype of one crop from the others."""

    needs = frozenset({"any_size"})
    queues: Any  # one for each global crop, or none

    @dataclass(frozen=True, kw_only=True)
    class Options(SwAVCrops):
        """SwAV's own options; defaults are the paper's for ResNet-50 on ImageNet."""

        prototypes: Count = 3000  # K
        hidden: Count = 2048  # width of the head's hidden layer
        projection: Count = 128  # width of z
        temperature: Positive = 0.1  # tau
        epsilon: Positive = 0.05  # epsilon of the assignment; larger is softer
        iterations: Count = 3  # of Sinkhorn-Knopp
        queue: Whole = 0  # earlier embeddings in the assignment (3840 at batch 256); 0 = none
        queue_from_epoch: NotNegative = 15.0  # epochs before the queue is filled
        freeze_prototypes: Whole = 313  # first steps, in which the prototypes are frozen

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        self.backbone = backbone
        self.head = mlp((backbone.dim, o.hidden, o.projection))
        self.prototypes = nn.Linear(o.projection, o.prototypes, bias=False)
        self.normalise_prototypes()
        self.queues = nn.ModuleList(
            [Queue(o.queue, o.projection) for _ in range(2)] if o.queue else []
        )

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code: the last norm of each block of a ResNet starts at 1."""
        if isinstance(backbone, ResNet):
            backbone.start_branches_at_one()

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o = options
        return multi_crop(
            image_size, o, blur=(o.blur,), solarise=(o.solarise,), local_blur=o.blur,
            interpolation="bilinear",
        )  # fmt: skip

    def step(self, batch: Batch, clock: Clock) -> Step:
        o = self.options
        b = batch.size
        # One backbone pass per resolution, one head pass for all crops.
        h = [self.backbone(v.flatten(0, 1)) for v in batch.views.values()]
        z = F.normalize(self.head(torch.cat(h)).float(), dim=-1)
        z = z.unflatten(0, (-1, b))  # [V, B, projection], globals first
        scores = prototype_scores(z, self.prototypes.weight)  # [V, B, K]
        targets = torch.stack([self._assign(t, z[t], scores[t]) for t in range(2)])
        loss = cross_entropy_views(targets, scores / o.temperature)
        if self.queue_fills(clock):
            for queue, new in zip(self.queues, z[:2], strict=True):
                queue.observe(new, clock.step)
        return Step(loss, target_signals(targets), features=h[0][:b].detach())

    def queue_fills(self, clock: Clock) -> bool:
        """Whether there is a queue, and it is filled by now."""
        begin = self.options.queue_from_epoch * clock.steps_per_epoch
        return bool(self.queues) and clock.step >= begin

    @torch.no_grad()
    def _assign(self, t: int, z: Tensor, scores: Tensor) -> Tensor:
        """q [B, K] of global crop t, assigned together with a queue that is full."""
        o = self.options
        if self.queues and self.queues[t].full:
            earlier = self.queues[t].local_rows()
            scores = torch.cat([prototype_scores(earlier, self.prototypes.weight), scores])
        return sinkhorn(scores, o.epsilon, o.iterations)[-len(z) :]

    def prototype_logits(self, h: Tensor) -> Tensor:
        z = F.normalize(self.head(h).float(), dim=-1)
        return prototype_scores(z, self.prototypes.weight)

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Normalises the prototypes to unit length."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=-1))

    def before_update(self, clock: Clock) -> None:
        if clock.step < self.options.freeze_prototypes:
            self.prototypes.weight.grad = None

    def after_update(self, clock: Clock) -> None:
        self.normalise_prototypes()
        if self.queue_fills(clock):
            for queue in self.queues:
                queue.update()

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ResNet-50, 800 epochs, batch 4096, SGD with LARC; up to batch 256 400 epochs with the
        queue, a higher rate for each image and no warm-up."""
        batch = context.batch_size or 4096
        if batch <= 256:
            lr = 0.6 * batch / 256
            optim = Optim(
                name="larc", lr=lr, warmup_epochs=0, lr_end=lr / 1000, weight_decay=1e-6,
                decay_all=True,
            )  # fmt: skip
            options = cls.Options(queue=3840, freeze_prototypes=5005)
            return Recipe(options=options, optim=optim, batch_size=batch, epochs=400)
        lr = 4.8 * batch / 4096
        optim = Optim(
            name="larc", lr=lr, lr_start=lr / 16, warmup_epochs=10, lr_end=lr / 1000,
            weight_decay=1e-6, decay_all=True,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=800)

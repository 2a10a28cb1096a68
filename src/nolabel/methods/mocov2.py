"""MoCo v2: momentum contrast with a queue of negatives.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2019,
arXiv 1911.05722; Chen et al., "Improved Baselines with Momentum Contrastive Learning" (v2: a
two-layer head, blur, cosine schedule), 2020, arXiv 2003.04297.

A query encoder and a key encoder of the same architecture see two views of each image. A query
finds its key k+ among the K keys of earlier batches:

    loss = -log( exp(q . k+ / T) / (exp(q . k+ / T) + sum_{k in queue} exp(q . k / T)) )    (eq. 1)
    theta_k <- m theta_k + (1 - m) theta_q,  m = 0.999, before the keys are made            (eq. 2)

Then the new keys replace the oldest of the queue. Keys have no gradient. Statistics of batch norm
would reveal which key belongs to a query, so images are shuffled among ranks before encoding keys.

`infomin` takes the views of Tian et al., "What Makes for Good Views for Contrastive Learning?",
2020, arXiv 2005.10243: stronger colour changes share less information between the views.

Differs from the original:
  - the key encoder moves after the update of the query encoder, which is the same moment as before
    the next keys;
  - with one rank nothing is shuffled, as there;
  - under gradient accumulation the queue changes after the step, as for one large batch;
  - the rate falls from step to step; the official one from epoch to epoch;
  - the InfoMin views leave out RandAugment and the jigsaw branch;
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
from nolabel.device import in_fp32
from nolabel.limits import Count, Positive, Share, Whole
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn.contrastive import encode_shuffled, pair_signals
from nolabel.nn.projectors import mlp
from nolabel.nn.queue import Queue
from nolabel.nn.state import Ema
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import two_views


@in_fp32
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Equation 1: unit queries q [B, D], their keys k [B, D], negatives [K, D]; mean over B."""
    positive = (q * k).sum(-1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, q @ queue.T], 1) / temperature  # [B, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


class MoCoV2(Method):
    """Momentum contrast: keys of an EMA encoder, many negatives from a queue."""

    own_norms = ("query", "key")  # statistics of one rank; keys are shuffled

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """MoCo v2's own options; defaults are the paper's for ResNet-50 on ImageNet."""

        queue: Whole = 65536  # K, keys of earlier batches
        temperature: Positive = 0.2  # T
        key_momentum: Share = 0.999  # m, constant
        hidden: Count = 2048  # width of the head's hidden layer
        projection: Count = 128  # width of q and k
        infomin: bool = False  # views of InfoMin: twice the colour jitter
        scale: tuple[float, float] = (0.2, 1.0)  # area of the crops, as share of the image
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a greyscale view
        blur: float = 0.5  # probability of blur
        solarise: float = 0.0  # probability of solarising
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        self.query: Any = nn.Sequential(
            backbone, mlp((backbone.dim, o.hidden, o.projection), norm=False)
        )
        self.key = Ema(self.query)  # initially equal
        self.queue = Queue(o.queue, o.projection)

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code: the last norm of each block of a ResNet starts at 1."""
        if isinstance(backbone, ResNet):
            backbone.start_branches_at_one()

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o = options
        b, c, s, h = (min(2 * j, 1.0) if o.infomin else j for j in o.jitter)
        return two_views(
            image_size, o, blur=(o.blur,), solarise=(o.solarise,), jitter=(b, c, s, min(h, 0.5)),
            interpolation="bilinear",
        )  # fmt: skip

    def step(self, batch: Batch, clock: Clock) -> Step:
        x_q, x_k = batch.views["view"]
        h = self.query[0](x_q)
        q = F.normalize(self.query[1](h).float(), dim=-1)
        k = F.normalize(encode_shuffled(self.key, x_k, seed=clock.step).float(), dim=-1)
        loss = info_nce(q, k, self.queue.value, self.options.temperature)
        self.queue.observe(k, clock.step)
        return Step(loss, pair_signals(q, k), features=h.detach())

    def after_update(self, clock: Clock) -> None:
        self.queue.update()
        self.key.follow(self.query, self.options.key_momentum)

    @property
    def encoder(self) -> Backbone:
        """The query encoder, which the paper evaluates."""
        return self.query[0]

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ResNet-50, 200 epochs, batch 256, SGD."""
        batch = context.batch_size or 256
        optim = Optim(
            name="sgd", lr=0.03 * batch / 256, warmup_epochs=0, lr_end=0.0, weight_decay=1e-4,
            decay_all=True,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=200)

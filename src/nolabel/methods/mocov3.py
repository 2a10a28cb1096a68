"""MoCo v3: momentum contrast for vision transformers.

Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", 2021,
arXiv 2104.02057.

A base encoder with projector and predictor gives q; a momentum encoder with projector gives k. The
other images of the batch are the negatives, there is no queue; both views take both parts:

    ctr(q, k) = 2 T * mean over i of  -log( exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T) )
    loss      = ctr(q1, k2) + ctr(q2, k1)                                           (algorithm 1)
    theta_k  <- m theta_k + (1 - m) theta_q,  m from 0.99 to 1 by half a cosine

A ViT keeps its random patch projection (frozen, which is what made training stable) and fixed
sine-cosine positions.

Differs from the original:
  - the momentum encoder moves after the update of the base encoder with the next step's m, which
    is the same as before the next keys;
  - the paper's ViT-S has 12 heads; timm's has 6, and is used as it is;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.init import init_like_mocov3
from nolabel.backbones.vit import ViT
from nolabel.limits import Count, Positive, Share
from nolabel.methods.base import Contrastive, Recipe, RecipeContext
from nolabel.nn.contrastive import batch_info_nce, pair_signals
from nolabel.nn.projectors import mlp
from nolabel.nn.schedules import momentum
from nolabel.nn.state import Ema
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import two_views


def ctr(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """ctr(q, k) of unit vectors [B, D]."""
    return 2 * temperature * batch_info_nce(q, k, temperature)


class MoCoV3(Contrastive):
    """Momentum contrast without a queue, made stable for vision transformers."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """MoCo v3's own options; defaults are the paper's for ViT on ImageNet."""

        temperature: Positive = 0.2  # T (1.0 for ResNet-50)
        key_momentum: Share = 0.99  # m in the first step; 1 in the last
        hidden: Count = 4096  # width of the hidden layers of projector and predictor
        projection: Count = 256  # width of q and k
        freeze_patch: bool = True  # a ViT's patch projection stays random
        scale: tuple[float, float] = (0.08, 1.0)  # area of the crops, as share of the image
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a greyscale view
        blur: tuple[float, float] = (1.0, 0.1)  # probability of blur, for each view
        solarise: tuple[float, float] = (0.0, 0.2)  # probability of solarising, for each view
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        is_vit = isinstance(backbone, ViT)
        layers = (o.hidden, o.hidden) if is_vit else (o.hidden,)
        widths = (backbone.dim, *layers, o.projection)
        if is_vit:
            backbone.net.pos_embed.requires_grad_(False)  # fixed, set by `init`
            backbone.net.patch_embed.proj.requires_grad_(not o.freeze_patch)
        self.base: Any = nn.Sequential(backbone, mlp(widths, bias=False, last_norm=True))
        self.momentum_encoder = Ema(self.base)  # initially equal
        widths = (o.projection, o.hidden, o.projection)
        self.predictor = mlp(widths, bias=False, last_norm=is_vit)

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code, with fixed sine-cosine position embeddings."""
        if isinstance(backbone, ViT):
            init_like_mocov3(backbone)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o = options
        return two_views(image_size, o, blur=o.blur, solarise=o.solarise, interpolation="bilinear")

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        x, slow = batch.views["view"], self.momentum_encoder.module[0]
        with torch.no_grad():
            h_slow = torch.stack([slow(v) for v in x])
        return torch.stack([self.base[0](v) for v in x]), h_slow  # [2, B, D] each

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        (h, h_slow), temperature = features, self.options.temperature
        q1, q2 = (F.normalize(self.predictor(self.base[1](x)).float(), dim=-1) for x in h)
        with torch.no_grad():
            slow = self.momentum_encoder.module[1]
            k1, k2 = (F.normalize(slow(x).float(), dim=-1) for x in h_slow)
        loss = ctr(q1, k2, temperature) + ctr(q2, k1, temperature)
        logs = pair_signals(q1, k2) | {"key_momentum": self.momentum(clock)}
        return Step(loss, logs, features=h[0].detach())

    def momentum(self, clock: Clock) -> float:
        """m of this step: the weight of the old momentum encoder."""
        return momentum(self.options.key_momentum, clock)

    def after_update(self, clock: Clock) -> None:
        following = dataclasses.replace(clock, step=clock.step + 1)
        self.momentum_encoder.follow(self.base, self.momentum(following))

    @property
    def encoder(self) -> Backbone:
        """The base encoder, which the paper evaluates."""
        return self.base[0]

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """300 epochs, batch 4096: ViT with AdamW, ResNet-50 with LARS (1000 epochs of it: weight
        decay 1.5e-6 and m from 0.996)."""
        batch = context.batch_size or 4096
        if context.conv:
            optim = Optim(
                name="lars", lr=0.3 * batch / 256, warmup_epochs=10, lr_end=0.0, weight_decay=1e-6
            )
            options = cls.Options(temperature=1.0, scale=(0.2, 1.0))
            return Recipe(options=options, optim=optim, batch_size=batch, epochs=300)
        optim = Optim(  # everything decays
            lr=1.5e-4 * batch / 256, warmup_epochs=40, lr_end=0.0, weight_decay=0.1, decay_all=True
        )
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=300)

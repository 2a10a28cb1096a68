"""DINO: self-distillation with no labels.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, arXiv 2104.14294.

A student g_s and a teacher g_t of the same architecture see crops of an image x. The teacher sees
the two global crops, the student all of them. With K prototypes,

    P_t(x) = softmax((g_t(x) - c) / tau_t)      centred by c, sharpened by tau_t; no gradient
    P_s(x) = softmax(g_s(x) / tau_s)
    loss   = mean over t in globals, v in all crops, v != t of  H(P_t(x_t), P_s(x_v))   (eq. 3)
    c     <- m c + (1 - m) mean over the batch of g_t(x)                                (eq. 4)
    theta_t <- lambda theta_t + (1 - lambda) theta_s,  lambda from 0.996 to 1 by half a cosine

The paper's ablations (tables 7 and 8, appendix B) are in `ablations/dino.py`; see `nolabel ablate`.

Differs from the original:
  - under gradient accumulation (which the official code lacks) the centre's mean is that of all
    micro-batches, and a rejected step does not change it;
  - blur is an exact Gaussian, not PIL's box approximation;
  - batch norm in the head, an option of the official code too, has the statistics of a micro-batch,
    so that accumulation is exact only without it;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.init import init_like_dino
from nolabel.backbones.resnet import ResNet
from nolabel.backbones.vit import ViT
from nolabel.limits import Count, NotNegative, Positive, Share
from nolabel.methods.base import HasPrototypes, Method, Recipe, RecipeContext
from nolabel.nn.heads import PrototypeHead
from nolabel.nn.losses import cross_entropy_views, target_signals
from nolabel.nn.schedules import momentum, per_epoch_linear
from nolabel.nn.state import Centre, Ema
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import DINOCrops, multi_crop


class Network(nn.Module):
    """Backbone and head: images [N, C, H, W] -> prototype logits [N, K]."""

    backbone: Backbone
    head: PrototypeHead

    def __init__(self, backbone: Backbone, head: PrototypeHead):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class DINO(Method, HasPrototypes):
    """Self-distillation with no labels."""

    needs = frozenset({"any_size"})

    @dataclass(frozen=True, kw_only=True)
    class Options(DINOCrops):
        """DINO's own options; defaults are the paper's for ViT-S/16."""

        prototypes: Count = 65536  # K, outputs of the head
        hidden: Count = 2048  # width of the head's hidden layers
        bottleneck: Count = 256  # width of the unit-length bottleneck
        head_batch_norm: bool = False  # batch norm in the head's hidden layers
        norm_last_layer: bool = True  # prototypes keep norm 1; False: their norms are trained
        student_temperature: Positive = 0.1  # tau_s
        teacher_temperature: Positive = 0.04  # tau_t after the warm-up (0.07 in the boosted recipe)
        warmup_teacher_temperature: Positive = 0.04  # tau_t in the first epoch
        warmup_teacher_temperature_epochs: NotNegative = 0.0  # epochs in which tau_t rises linearly
        teacher_momentum: Share = 0.996  # lambda in the first step; 1 in the last
        centre_momentum: Share = 0.9  # m, weight of the old centre
        freeze_last_layer: NotNegative = 1.0  # first epochs, in which the prototypes are frozen
        drop_path: Share = 0.1  # stochastic depth of the student; the teacher has none

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        head = PrototypeHead(
            backbone.dim, o.prototypes, hidden=o.hidden, bottleneck=o.bottleneck,
            norm_last_layer=o.norm_last_layer, batch_norm=o.head_batch_norm,
        )  # fmt: skip
        self.student = Network(backbone, head)
        self.teacher = Ema(self.student)  # initially equal
        backbone.set_drop_path(o.drop_path)  # the student alone
        self.centre = Centre(o.prototypes, o.centre_momentum)

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code, but Xavier-uniform matrices in narrow ViTs."""
        if isinstance(backbone, ViT):
            init_like_dino(backbone.net)
        elif isinstance(backbone, ResNet):
            backbone.start_branches_at_one()

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return multi_crop(image_size, options)

    def step(self, batch: Batch, clock: Clock) -> Step:
        crops, b = batch.views["global"], batch.size  # [2, B, C, H, W]
        with torch.no_grad():
            h = self.teacher.module.backbone(crops.flatten(0, 1))  # [2B, D]
            t = self.teacher.module.head(h).float().unflatten(0, (2, b))  # [2, B, K]
        # One backbone pass per resolution, one head pass for all crops.
        z = [self.student.backbone(v.flatten(0, 1)) for v in batch.views.values()]
        s = self.student.head(torch.cat(z)).float().unflatten(0, (-1, b))  # [V, B, K]

        tau = self.teacher_temperature(clock)
        targets = (t / tau - self.centre.value / tau).softmax(-1)  # P_t
        loss = cross_entropy_views(targets, s / self.options.student_temperature)
        self.centre.observe(t, clock.step)
        logs = target_signals(targets) | {"teacher_momentum": self.momentum(clock)}
        return Step(loss, logs, features=h[:b])

    def prototype_logits(self, h: Tensor) -> Tensor:
        return self.teacher.module.head(h) - self.centre.value

    def teacher_temperature(self, clock: Clock) -> float:
        """tau_t of this epoch."""
        o = self.options
        return per_epoch_linear(
            o.warmup_teacher_temperature,
            o.teacher_temperature,
            o.warmup_teacher_temperature_epochs,
            clock,
        )

    def momentum(self, clock: Clock) -> float:
        """lambda of this step: the weight of the old teacher."""
        return momentum(self.options.teacher_momentum, clock)

    def before_update(self, clock: Clock) -> None:
        self.student.head.freeze_first_epochs(self.options.freeze_last_layer, clock)

    def after_update(self, clock: Clock) -> None:
        self.teacher.follow(self.student, self.momentum(clock))
        self.centre.update()

    @property
    def encoder(self) -> Backbone:
        """The teacher, which is better than the student during training (paper, figure 6)."""
        return self.teacher.module.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-S/16, 100 epochs, batch 1024; ResNet-50, 100 epochs, batch 512, SGD."""
        if context.conv:
            batch = context.batch_size or 512
            optim = Optim(
                name="sgd", lr=0.03 * batch / 256, warmup_epochs=10, lr_end=1e-6,
                weight_decay=1e-4, clip=3.0, clip_by="tensor",
            )  # fmt: skip
            options = cls.Options(drop_path=0.0, global_scale=(0.14, 1.0), local_scale=(0.05, 0.14))
            return Recipe(options=options, optim=optim, batch_size=batch, epochs=100)
        batch = context.batch_size or 1024
        optim = Optim(
            lr=5e-4 * batch / 256, warmup_epochs=10, lr_end=1e-6, weight_decay=0.04,
            weight_decay_end=0.4, clip=3.0, clip_by="tensor",
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=100)

"""iBOT: image BERT pre-training with an online tokenizer.

Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", 2021, arXiv 2111.07832.

DINO, and masked image modelling with the teacher as the tokenizer. The student sees the two global
crops with blocks of patches replaced by a mask token, and unmasked local crops; the teacher sees
the unmasked global crops. Both have a head for the class token and one for patches (released models
share one):

    L_cls   = mean over t in globals, v in crops, v != t, of  H(P_t^cls, P_v^cls)        (eq. 1)
    L_patch = mean over images and the two global crops of
              1 / n  sum over the n hidden patches of  H(P_t^patch, P_s^patch)           (eq. 2)
    loss    = lambda_1 L_cls + lambda_2 L_patch

P_t is centred and sharpened as in DINO, with a separate centre and temperature for patches; the
patch centre is the mean over all patches, masked or not. The teacher is an EMA of the student. Each
global crop is masked with probability `masked`, by a ratio uniform in `mask_ratio`.

Differs from the original:
  - without a shared head, class token and patches share nothing; officially still the head's MLP;
  - the patch loss counts from the first step (the official Swins start it at epoch 50);
  - only masked patches go through the student's head (faster; the same loss without batch norm);
  - centres are updated after the step, from all micro-batches under gradient accumulation;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.init import init_like_dino
from nolabel.backbones.vit import ViT
from nolabel.errors import unknown
from nolabel.limits import Count, NotNegative, Positive, Share, Whole
from nolabel.methods.base import HasPrototypes, Method, Recipe, RecipeContext
from nolabel.nn.heads import PrototypeHead
from nolabel.nn.keyed_random import KeyedRandom
from nolabel.nn.losses import cross_entropy_views, target_signals
from nolabel.nn.masked import PatchNetwork, PrototypeLogits, masked_cross_entropy
from nolabel.nn.masks import block_masks, random_masks
from nolabel.nn.schedules import momentum, per_epoch_linear
from nolabel.nn.state import Centre, Ema
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import DINOCrops, multi_crop

SHAPES = ("block", "random")


class IBOT(Method, HasPrototypes):
    """DINO with masked image modelling: the teacher is the tokenizer."""

    needs = frozenset({"mask", "any_size"})

    @dataclass(frozen=True, kw_only=True)
    class Options(DINOCrops):
        """iBOT's own options; defaults are the paper's for ViT-S/16."""

        prototypes: Count = 8192  # K of the class head
        patch_prototypes: Count = 8192  # K of the patch head, where it is not shared
        shared_head: bool = True  # one head for class token and patches
        hidden: Count = 2048  # width of the heads' hidden layers
        bottleneck: Count = 256  # width of the unit-length bottleneck
        head_batch_norm: bool = False  # batch norm in the heads' hidden layers
        norm_last_layer: bool = False  # prototypes keep norm 1; False: their norms are trained
        class_weight: NotNegative = 1.0  # lambda_1
        patch_weight: NotNegative = 1.0  # lambda_2
        masked: Share = 0.5  # probability that a global crop is masked
        mask_ratio: tuple[float, float] = (0.1, 0.5)  # least and largest share of masked patches
        mask_shape: str = "block"  # block or random (slightly better for ViT-B and L)
        student_temperature: Positive = 0.1  # tau_s
        teacher_temperature: Positive = 0.07  # tau_t of the class token after the warm-up
        patch_temperature: Positive = 0.07  # tau_t of the patches after the warm-up
        warmup_teacher_temperature: Positive = 0.04  # both tau_t in the first epoch
        warmup_teacher_temperature_epochs: NotNegative = 30.0  # in which tau_t rises linearly
        teacher_momentum: Share = 0.996  # lambda in the first step; 1 in the last
        centre_momentum: Share = 0.9  # of both centres
        freeze_last_layer: NotNegative = 1.0  # first epochs, in which the prototypes are frozen
        drop_path: Share = 0.1  # stochastic depth of the student; the teacher has none
        chunk: Whole = 0  # rows of patch logits in memory at a time (slower); 0 = all
        global_scale: tuple[float, float] = (0.25, 1.0)  # area of the two global crops, as share
        local_scale: tuple[float, float] = (0.05, 0.25)  # area of the local crops, as share
        local_crops: int = 10  # number of local crops; 0 = no multi-crop

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        if o.mask_shape not in SHAPES:
            raise unknown("mask-shape", o.mask_shape, SHAPES)
        make = partial(PrototypeHead, backbone.dim, hidden=o.hidden, bottleneck=o.bottleneck,
                       norm_last_layer=o.norm_last_layer, batch_norm=o.head_batch_norm)  # fmt: skip
        head, k = make(o.prototypes), o.prototypes if o.shared_head else o.patch_prototypes
        patch_head = head if o.shared_head else make(k)
        self.student = PatchNetwork(backbone, head, patch_head)
        self.teacher = Ema(self.student)  # initially equal
        backbone.set_drop_path(o.drop_path)  # the student alone
        self.mask_token = nn.Parameter(torch.zeros(backbone.mask_dim))
        self.centre = Centre(o.prototypes, o.centre_momentum)
        self.patch_centre = Centre(k, o.centre_momentum)

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code, but Xavier-uniform matrices in narrow ViTs."""
        if isinstance(backbone, ViT):
            init_like_dino(backbone.net)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return multi_crop(image_size, options)

    def draw_masks(self, n: int, grid: tuple[int, int]) -> Tensor:
        """Masks bool [n, P] of n global crops."""
        o, random, patches = self.options, KeyedRandom(n // 2, 2), grid[0] * grid[1]
        (low, high), (u, coin) = o.mask_ratio, random(2).T
        counts = ((low + (high - low) * u) * (coin < o.masked) * patches).astype(np.int64)
        if o.mask_shape == "random":
            return random_masks(counts, patches, random)
        return block_masks(counts, grid, smallest=max(min(grid) // 3, 1) ** 2, random=random)

    def step(self, batch: Batch, clock: Clock) -> Step:
        o, b = self.options, batch.size
        crops = batch.views["global"].flatten(0, 1)  # [2B, C, H, W]
        student, teacher = self.student, self.teacher.module
        tau, patch_tau = (self.temperature(end, clock) for end in
                          (o.teacher_temperature, o.patch_temperature))  # fmt: skip
        with torch.no_grad():
            seen = teacher.backbone.tokens(crops)
            masks = self.draw_masks(2 * b, seen.grid).to(crops.device)  # [2B, P]
            t = teacher.head(seen.pooled).float().unflatten(0, (2, b))  # [2, B, K]
            t_z = teacher.patch_head.bottleneck(seen.patches.flatten(0, 1))  # [2B P, bottleneck]
            # The last layer is linear: the mean of all logits without computing them.
            mean = teacher.patch_head.last_layer(t_z.mean(0, keepdim=True))
        hidden = student.backbone.tokens(crops, mask=masks, mask_token=self.mask_token)
        z = [hidden.pooled]
        if "local" in batch.views:
            z.append(student.backbone(batch.views["local"].flatten(0, 1)))
        s = student.head(torch.cat(z)).float().unflatten(0, (-1, b))  # [V, B, K], globals first

        targets = ((t - self.centre.value) / tau).softmax(-1)  # P_t of the class token
        loss_cls = cross_entropy_views(targets, s / o.student_temperature)
        patch_targets = PrototypeLogits(
            t_z[masks.flatten()], teacher.patch_head.last_layer, patch_tau, o.chunk
        ).shifted(-self.patch_centre.value / patch_tau)
        s_patch = PrototypeLogits.of_head(
            student.patch_head, hidden.patches[masks], o.student_temperature, o.chunk
        )
        loss_patch = masked_cross_entropy(patch_targets, s_patch, masks)
        loss = o.class_weight * loss_cls + o.patch_weight * loss_patch

        self.centre.observe(t, clock.step)
        self.patch_centre.observe(mean, clock.step)
        logs = {
            "loss_class": loss_cls.detach(), "loss_patch": loss_patch.detach(),
            "teacher_momentum": momentum(o.teacher_momentum, clock), **target_signals(targets),
        }  # fmt: skip
        return Step(loss, logs, features=seen.pooled[:b])

    def prototype_logits(self, h: Tensor) -> Tensor:
        return self.teacher.module.head(h) - self.centre.value

    def temperature(self, end: float, clock: Clock) -> float:
        """tau_t of this epoch; `end` is its value after the warm-up."""
        o = self.options
        epochs = o.warmup_teacher_temperature_epochs
        return per_epoch_linear(o.warmup_teacher_temperature, end, epochs, clock)

    def before_update(self, clock: Clock) -> None:
        self.student.freeze_first_epochs(self.options.freeze_last_layer, clock)

    def after_update(self, clock: Clock) -> None:
        self.teacher.follow(self.student, momentum(self.options.teacher_momentum, clock))
        self.centre.update()
        self.patch_centre.update()

    @property
    def encoder(self) -> Backbone:
        """The teacher."""
        return self.teacher.module.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-S/16, 800 epochs, batch 1024."""
        batch = context.batch_size or 1024
        optim = Optim(
            lr=5e-4 * batch / 256, warmup_epochs=10, lr_end=1e-6, weight_decay=0.04,
            weight_decay_end=0.4, decayed=("mask_token",), clip=3.0, clip_by="tensor",
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=800)

"""DINOv2: learning robust visual features without supervision.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023,
arXiv 2304.07193. It is iBOT with what made it scale (its table 1); each addition is an option:

    loss = L_DINO + L_iBOT + 0.1 sum over the two global crops of L_KoLeo
    L_DINO  mean over pairs (teacher's global crop t, student's crop v != t) of H(P_t, P_v)
    L_iBOT  1 / 2B  sum over global crops of the mean over its hidden patches of H(P_t, P_s)
    L_KoLeo -mean over i of log |x_i - x_nn(i)|, x the student's unit class tokens of one crop

Teacher targets are balanced by Sinkhorn-Knopp or centred; class token and patches have separate
heads. Half of the global crops are masked, by ratios in [0.1, 0.5]. Optional: LayerScale, SwiGLU,
registers (Darcet et al. 2023, arXiv 2309.16588). High resolution at the end: --init, --image-size.

Differs from the original:
  - KoLeo's neighbours are those among the crops of all ranks (there of one rank);
  - under gradient accumulation Sinkhorn and KoLeo see the crops of one micro-batch;
  - the centre is updated after the step, there in the next one; frozen prototypes have no gradient;
  - blur has the paper's probabilities (released models: 1 - p, a slip);
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.init import init_like_dinov2
from nolabel.backbones.vit import ViT
from nolabel.errors import unknown
from nolabel.limits import Count, NotNegative, Positive, Share, Whole
from nolabel.methods.base import HasPrototypes, Method, Recipe, RecipeContext
from nolabel.nn.assignment import sinkhorn_shift
from nolabel.nn.heads import PrototypeHead
from nolabel.nn.keyed_random import KeyedRandom
from nolabel.nn.koleo import koleo
from nolabel.nn.losses import cross_entropy_views, target_signals
from nolabel.nn.masked import PatchNetwork, PrototypeLogits, masked_cross_entropy
from nolabel.nn.masks import block_masks, spread_counts
from nolabel.nn.schedules import linear, momentum
from nolabel.nn.state import Centre, Ema
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import DINOCrops, multi_crop

OFFICIAL_EPOCH = 1250  # steps


class DINOv2(Method, HasPrototypes):
    """iBOT made robust: Sinkhorn targets, KoLeo, untied heads, dropped samples."""

    needs = frozenset({"mask", "any_size", "attention"})
    paper_variants = ("short",)
    ablations: ClassVar[Any] = {  # backwards through table 1 of the paper
        "no KoLeo": {"koleo": 0.0}, "centring": {"centring": "centre"},
        "shared head": {"shared_head": True}, "no LayerScale": {"layer_scale": 0.0},
        "SwiGLU": {"swiglu": True}, "registers": {"registers": 4},
        "no masks": {"patch_weight": 0.0, "masked": 0.0},
    }  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Options(DINOCrops):
        """DINOv2's own options; defaults are those of the large published models."""

        prototypes: Count = 131072  # K of the class head
        patch_prototypes: Count = 131072  # K of the patch head, where it is not shared
        shared_head: bool = False  # one head for class token and patches, as in iBOT
        hidden: Count = 2048  # width of the heads' hidden layers
        bottleneck: Count = 384  # width of the class head's unit-length bottleneck
        patch_bottleneck: Count = 256  # width of the patch head's
        head_batch_norm: bool = False  # batch norm in the heads' hidden layers
        centring: str = "sinkhorn"  # of the teacher's logits: sinkhorn or centre
        patch_weight: NotNegative = 1.0  # weight of L_iBOT
        koleo: NotNegative = 0.1  # weight of L_KoLeo
        masked: Share = 0.5  # share of the global crops that are masked
        mask_ratio: tuple[float, float] = (0.1, 0.5)  # least and largest share of masked patches
        student_temperature: Positive = 0.1  # tau_s
        teacher_temperature: Positive = 0.07  # tau_t after the warm-up
        warmup_teacher_temperature: Positive = 0.04  # tau_t at the first step
        warmup_teacher_temperature_epochs: NotNegative = 30.0  # in which tau_t rises, step by step
        teacher_momentum: Share = 0.994  # EMA momentum in the first step; 1 in the last
        freeze_last_layer: NotNegative = 1.0  # first epochs, in which the prototypes are frozen
        drop_path: Share = 0.4  # share of samples that a branch drops; not in the teacher
        layer_scale: NotNegative = 1e-5  # initial LayerScale; 0 = no LayerScale
        swiglu: bool = False  # gated MLPs (the large and the giant model)
        registers: Whole = 0  # extra tokens beside the class token (4 in the models with registers)
        chunk: Whole = 0  # rows of patch logits in memory at a time (slower); 0 = all
        global_scale: tuple[float, float] = (0.32, 1.0)  # area of the two global crops, as share
        local_scale: tuple[float, float] = (0.05, 0.32)  # area of the local crops, as share
        local_size: int = 98  # side of the local crops in pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        if o.centring not in (allowed := ("sinkhorn", "centre")):
            raise unknown("centring", o.centring, allowed)
        make = partial(PrototypeHead, backbone.dim, hidden=o.hidden, norm_last_layer=False,
                       batch_norm=o.head_batch_norm)  # fmt: skip
        head = make(o.prototypes, bottleneck=o.bottleneck)
        k = o.prototypes if o.shared_head else o.patch_prototypes
        patch_head = head if o.shared_head else make(k, bottleneck=o.patch_bottleneck)
        self.student = PatchNetwork(backbone, head, patch_head)
        self.teacher = Ema(self.student)  # initially equal
        backbone.set_drop_path(o.drop_path, by_samples=True)  # the student alone
        self.mask_token = nn.Parameter(torch.zeros(backbone.mask_dim))
        self.centres: Any = nn.ModuleList([Centre(o.prototypes), Centre(k)])

    @classmethod
    def backbone_kwargs(cls, options: Options) -> dict[str, Any]:
        o = options  # registers have no position embedding
        kwargs = {"init_values": o.layer_scale, "swiglu": o.swiglu, "reg_tokens": o.registers,
                 "no_embed_class": bool(o.registers)}  # fmt: skip
        return {k: v for k, v in kwargs.items() if v}

    @staticmethod
    def init(backbone: Backbone) -> None:
        init_like_dinov2(backbone.net if isinstance(backbone, ViT) else backbone)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return multi_crop(image_size, options)

    def draw_masks(self, n: int, grid: tuple[int, int]) -> Tensor:
        """Masks bool [n, P] of n global crops: a share `masked`, one ratio from each bin."""
        o, random = self.options, KeyedRandom(n // 2, 2)
        counts = spread_counts(o.masked, o.mask_ratio, grid[0] * grid[1], random)
        return block_masks(counts, grid, smallest=4, random=random)

    def step(self, batch: Batch, clock: Clock) -> Step:
        o, b = self.options, batch.size
        crops = batch.views["global"].flatten(0, 1)  # [2B, C, H, W]
        student, teacher, tau = self.student, self.teacher.module, self.teacher_temperature(clock)
        h, w = (side // student.backbone.patch_size for side in crops.shape[-2:])
        masks = self.draw_masks(2 * b, (h, w)).to(crops.device)  # [2B, P]

        with torch.no_grad():
            seen = teacher.backbone.tokens(crops)
            t = PrototypeLogits(teacher.head(seen.pooled), nn.Identity(), tau)  # few: all at once
            t_patch = PrototypeLogits.of_head(teacher.patch_head, seen.patches[masks], tau, o.chunk)
            targets = self.centring(t, self.centres[0], clock)
            patch_targets = self.centring(t_patch, self.centres[1], clock)
            p = targets.softmax().unflatten(0, (2, b))  # P_t [2, B, K]
        hidden = student.backbone.tokens(crops, mask=masks, mask_token=self.mask_token)
        z = [hidden.pooled]
        if "local" in batch.views:
            z.append(student.backbone(batch.views["local"].flatten(0, 1)))
        s = student.head(torch.cat(z)).float().unflatten(0, (-1, b))  # [V, B, K], globals first
        s_patch = PrototypeLogits.of_head(
            student.patch_head, hidden.patches[masks], o.student_temperature, o.chunk
        )

        loss_dino = cross_entropy_views(p, s / o.student_temperature)
        loss_ibot = masked_cross_entropy(patch_targets, s_patch, masks)
        loss_koleo = torch.stack([koleo(x) for x in hidden.pooled.chunk(2)]).sum()
        loss = loss_dino + o.patch_weight * loss_ibot + o.koleo * loss_koleo
        logs = {"loss_dino": loss_dino.detach(), "loss_ibot": loss_ibot.detach(),
                "koleo": loss_koleo.detach() / 2, **target_signals(p),
                "teacher_momentum": momentum(o.teacher_momentum, clock)}  # fmt: skip
        return Step(loss, logs, features=seen.pooled[:b])

    def centring(self, t: PrototypeLogits, centre: Centre, clock: Clock) -> PrototypeLogits:
        """The teacher's logits, balanced by Sinkhorn-Knopp, or centred as in DINO."""
        if self.options.centring == "sinkhorn":
            return t.shifted(sinkhorn_shift(t.pieces(), logits=t.of))
        for z in t.pieces():
            centre.observe(t.prototypes(z), clock.step)
        return t.shifted(-centre.value / t.temperature)

    def prototype_logits(self, h: Tensor) -> Tensor:
        return self.teacher.module.head(h) - self.centres[0].value

    def teacher_temperature(self, clock: Clock) -> float:
        """tau_t of this step."""
        o = self.options
        last = max(round(o.warmup_teacher_temperature_epochs * clock.steps_per_epoch) - 1, 0)
        return linear(o.warmup_teacher_temperature, o.teacher_temperature, clock.step, last)

    def before_update(self, clock: Clock) -> None:
        self.student.freeze_first_epochs(self.options.freeze_last_layer, clock)

    def after_update(self, clock: Clock) -> None:
        self.teacher.follow(self.student, momentum(self.options.teacher_momentum, clock))
        for centre in self.centres if self.options.centring == "centre" else ():
            centre.update()

    @property
    def encoder(self) -> Backbone:
        return self.teacher.module.backbone  # the branch that the paper evaluates

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-L/14 on LVD-142M, batch 3072; "short": ViT-L/16 on ImageNet-1k, batch 2048."""
        short = context.variant == "short"
        batch = context.batch_size or (2048 if short else 3072)
        epoch = OFFICIAL_EPOCH / max(context.images // batch, 1)  # in passes over the data
        optim = Optim(
            lr=(4e-3 if short else 2e-4) * (batch / 1024) ** 0.5, lr_patch=0.2, clip=3.0,
            warmup_epochs=(10 if short else 80) * epoch, layer_decay=0.9 if short else 1.0,
            weight_decay_end=0.4 if short else 0.2, decayed=("mask_token",), clip_by="module",
        )  # fmt: skip
        size: dict[str, Any] = {
            "prototypes": 65536, "shared_head": True, "bottleneck": 256, "centring": "centre",
            "drop_path": 0.3, "teacher_momentum": 0.992,
        } if short else {"swiglu": True}  # fmt: skip
        options = cls.Options(
            local_size=context.round_to_patches(96 if short else 98), freeze_last_layer=epoch,
            warmup_teacher_temperature_epochs=30 * epoch, **size,
        )  # fmt: skip
        steps = (100 if short else 500) * OFFICIAL_EPOCH
        return Recipe(options=options, optim=optim, batch_size=batch, epochs=1, steps=steps)

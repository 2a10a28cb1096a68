"""DINOv2: learning robust visual features without supervision.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023,
arXiv 2304.07193. It is iBOT with what made it scale (its table 1); each addition is an option:

    loss = L_DINO + L_iBOT + 0.1 sum over the two global crops of L_KoLeo
    L_DINO  mean over pairs (teacher's global crop t, student's crop v != t) of H(P_t, P_v)
    L_iBOT  1 / 2B  sum over global crops of the mean over its hidden patches of H(P_t, P_s)
    L_KoLeo -mean over i of log |x_i - x_nn(i)|, x the student's unit class tokens of one crop

Teacher targets are balanced by Sinkhorn-Knopp or centred; class token and patches have heads of
their own. Half of the global crops are masked, by ratios spread evenly over [0.1, 0.5]. Optional:
LayerScale, SwiGLU, registers (Darcet et al. 2023, arXiv 2309.16588); stochastic depth computes
nothing for the samples it drops. High resolution at the end is a run with --init, --image-size.

Differs from the original:
  - KoLeo's neighbours are searched among the crops of one process, as there;
  - the centre moves after the update, there in the next step; frozen prototypes get no gradient;
  - blur has the paper's probabilities, released models 1 - p by a slip; "auto" is a recipe of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.vit import init_like_dino
from nolabel.errors import unknown
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn import losses
from nolabel.nn.assignment import sinkhorn_shift
from nolabel.nn.heads import PrototypeHead
from nolabel.nn.keyed_random import Chance
from nolabel.nn.koleo import koleo as koleo_of
from nolabel.nn.masks import block_masks
from nolabel.nn.schedules import linear, momentum
from nolabel.nn.state import Centre, Ema
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan, multi_crop


class DINOv2(Method):
    """iBOT made robust: Sinkhorn targets, KoLeo, untied heads, dropped samples."""

    needs = frozenset({"mask", "any_size", "attention"})
    ablations: ClassVar[Any] = {  # backwards through table 1 of the paper
        "no KoLeo": {"koleo": 0.0}, "centring": {"centring": "centre"},
        "shared head": {"shared_head": True}, "no LayerScale": {"layer_scale": 0.0},
        "SwiGLU": {"swiglu": True}, "registers": {"registers": 4},
        "no masks": {"patch_weight": 0.0, "masked": 0.0},
    }  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """DINOv2's own options; defaults are those of the large published models."""

        prototypes: int = 131072  # K of the class head
        patch_prototypes: int = 131072  # K of the patch head, where it is not shared
        shared_head: bool = False  # one head for class token and patches (iBOT's way)
        hidden: int = 2048  # width of the heads' hidden layers
        bottleneck: int = 384  # width of the class head's unit-length bottleneck
        patch_bottleneck: int = 256  # width of the patch head's
        head_batch_norm: bool = False  # batch norm in the heads' hidden layers
        centring: str = "sinkhorn"  # of the teacher's logits: sinkhorn or centre
        patch_weight: float = 1.0  # of L_iBOT
        koleo: float = 0.1  # weight of L_KoLeo
        masked: float = 0.5  # share of the global crops that are masked
        mask_ratio: tuple[float, float] = (0.1, 0.5)  # share of patches hidden in those
        student_temperature: float = 0.1  # tau_s
        teacher_temperature: float = 0.07  # tau_t after the warm-up
        warmup_teacher_temperature: float = 0.04  # tau_t at the first step
        warmup_teacher_temperature_epochs: int = 30  # linear in between, step by step
        teacher_momentum: float = 0.994  # at the start; 1 at the end
        freeze_last_layer: int = 1  # epochs in which the prototypes do not move
        drop_path: float = 0.4  # share of samples that a branch leaves out; the teacher's none
        layer_scale: float = 1e-5  # first scale of every branch; 0 = none
        swiglu: bool = False  # gated MLPs (the giant model)
        registers: int = 0  # extra tokens beside the class token (4 in the models with registers)
        chunk: int = 0  # rows of patch logits held at once; 0 = all (saves memory, costs time)
        global_scale: tuple[float, float] = (0.32, 1.0)  # area of the two global crops
        local_scale: tuple[float, float] = (0.05, 0.32)  # area of the local crops
        local_crops: int = 8  # 0 = no multi-crop
        local_size: int = 98  # side of the local crops in pixels
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a grey crop
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        if o.centring not in (allowed := ("sinkhorn", "centre")):
            raise unknown("centring", o.centring, allowed)

        def head(prototypes: int, bottleneck: int) -> PrototypeHead:
            return PrototypeHead(backbone.dim, prototypes, hidden=o.hidden, bottleneck=bottleneck,
                                 norm_last_layer=False, batch_norm=o.head_batch_norm)  # fmt: skip

        first = head(o.prototypes, o.bottleneck)
        second = first if o.shared_head else head(o.patch_prototypes, o.patch_bottleneck)
        self.student: Any = nn.ModuleDict(dict(backbone=backbone, head=first, patch_head=second))
        self.teacher = Ema(self.student)  # equal at birth
        backbone.set_drop_path(o.drop_path, by_samples=True)  # the student alone
        self.mask_token = nn.Parameter(torch.zeros(backbone.mask_dim))
        k = o.prototypes if o.shared_head else o.patch_prototypes
        self.centres: Any = nn.ModuleList([Centre(o.prototypes), Centre(k)])

    @classmethod
    def backbone_kwargs(cls, options: Options) -> dict[str, Any]:
        o = options  # registers have no position
        asked = {"init_values": o.layer_scale, "swiglu": o.swiglu, "reg_tokens": o.registers,
                 "no_embed_class": bool(o.registers)}  # fmt: skip
        return {k: v for k, v in asked.items() if v}

    @staticmethod
    def init(backbone: Backbone) -> None:
        init_like_dino(getattr(backbone, "net", backbone))

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return multi_crop(image_size, options)

    def draw_masks(self, n: int, grid: tuple[int, int]) -> Tensor:
        """bool [n, P]: exactly a share of n global crops masked, ratios one from each bin."""
        o, chance = self.options, Chance(n // 2, 2)
        rng, chosen = chance.of_all(), int(chance.total * o.masked)
        low, high = o.mask_ratio
        ratio = low + (high - low) * (np.arange(chosen) + rng.random(chosen)) / max(chosen, 1)
        counts = np.zeros(chance.total, np.int64)
        counts[rng.permutation(chance.total)[:chosen]] = ratio * grid[0] * grid[1]
        return block_masks(counts[chance.rows], grid, smallest=4, chance=chance)

    def step(self, batch: Batch, clock: Clock, masks: Tensor | None = None) -> Step:
        o, b = self.options, batch.size
        crops = batch.views["global"].flatten(0, 1)  # [2B, C, H, W]
        student, teacher, tau = self.student, self.teacher.module, self.teacher_temperature(clock)
        if masks is None:
            h, w = (side // student.backbone.patch_size for side in crops.shape[-2:])
            masks = self.draw_masks(2 * b, (h, w)).to(crops.device)
        with torch.no_grad():
            seen = teacher.backbone.tokens(crops)
            t = teacher.head(seen.pooled).float()  # [2B, K]
            known = teacher.patch_head.bottleneck(seen.patches[masks])  # hidden ones alone
            shift = self._shift(0, nn.Identity(), t, tau, clock)
            patch_shift = self._shift(1, teacher.patch_head.last_layer, known, tau, clock)
            targets = (t / tau + shift).softmax(-1).unflatten(0, (2, b))
        hidden = student.backbone.tokens(crops, mask=masks, mask_token=self.mask_token)
        z = [hidden.pooled]
        if "local" in batch.views:
            z.append(student.backbone(batch.views["local"].flatten(0, 1)))
        s = student.head(torch.cat(z)).float().unflatten(0, (-1, b))  # [V, B, K], globals first
        loss_dino = losses.cross_entropy_views(targets, s / o.student_temperature)
        per_token = losses.prototype_cross_entropy(
            student.patch_head.bottleneck(hidden.patches[masks]), student.patch_head.last_layer,
            known, teacher.patch_head.last_layer, patch_shift, o.student_temperature, tau, o.chunk,
        )  # fmt: skip
        loss_ibot = losses.mean_over_masked(per_token, masks)
        koleo = torch.stack([koleo_of(x) for x in hidden.pooled.chunk(2)]).sum()
        logs = {"loss_dino": loss_dino.detach(), "loss_ibot": loss_ibot.detach(),
                "koleo": koleo.detach() / 2, **losses.target_signals(targets),
                "teacher_momentum": momentum(o.teacher_momentum, clock)}  # fmt: skip
        loss = loss_dino + o.patch_weight * loss_ibot + o.koleo * koleo
        return Step(loss, logs, seen.pooled[:b])

    def _shift(self, head: int, last: nn.Module, z: Tensor, tau: float, clock: Clock) -> Tensor:
        """What balances the teacher's logits last(z) / tau: Sinkhorn's scales or the centre."""
        if self.options.centring == "sinkhorn":
            rows = z.split(self.options.chunk or max(len(z), 1))
            return sinkhorn_shift(rows, logits=lambda z: last(z).float() / tau)
        self.centres[head].observe(last(z), clock.step)
        return -self.centres[head].value / tau

    def teacher_temperature(self, clock: Clock) -> float:
        """tau_t of this step."""
        o = self.options
        last = max(o.warmup_teacher_temperature_epochs * clock.steps_per_epoch - 1, 0)
        return linear(o.warmup_teacher_temperature, o.teacher_temperature, clock.step, last)

    def before_update(self, clock: Clock) -> None:
        if clock.epoch < self.options.freeze_last_layer:
            for head in (self.student.head, self.student.patch_head):
                for p in head.last_layer.parameters():
                    p.grad = None

    def after_update(self, clock: Clock) -> None:
        self.teacher.follow(self.student, momentum(self.options.teacher_momentum, clock))
        for centre in self.centres if self.options.centring == "centre" else ():
            centre.update()

    @property
    def encoder(self) -> Backbone:
        return self.teacher.module.backbone  # the branch that the paper evaluates

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-L/14 on LVD-142M, 500 "epochs" of 1,250 steps, batch 2048."""
        batch = context.batch_size or 2048
        optim = Optim(
            lr=2e-4 * (batch / 1024) ** 0.5, warmup_epochs=80, lr_end=1e-6, lr_patch=0.2,
            weight_decay=0.04, weight_decay_end=0.2, clip=3.0, clip_by="module",
        )  # fmt: skip
        options = cls.Options(local_size=context.round_to_patches(98))
        return Recipe(options=options, optim=optim, batch_size=batch, epochs=500)

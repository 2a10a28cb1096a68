"""DINO with the switches of its paper's ablations.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, arXiv 2104.14294,
tables 7 and 8 and appendix B. With its defaults it equals DINO (`methods/dino.py`). Each option
removes or replaces one component:

    teacher     a copy of the student of the last step (lambda = 0)
    centring    Sinkhorn-Knopp (SwAV) or none, instead of the centre
    loss        mean over the pairs v != t of |g_t/|g_t| - g_s/|g_s||^2, as in BYOL
    predictor   two layers between the student's bottleneck and its prototypes

Training without local crops is an option of DINO itself (`local_crops`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.device import in_fp32
from nolabel.errors import unknown
from nolabel.methods.dino import DINO
from nolabel.nn.assignment import sinkhorn
from nolabel.nn.losses import cross_entropy_views, target_signals
from nolabel.nn.projectors import mlp
from nolabel.types import Batch, Clock, Step

CHOICES = {
    "teacher": ("momentum", "copy"),
    "centring": ("centre", "sinkhorn", "none"),
    "loss": ("cross-entropy", "mse"),
}


@in_fp32
def squared_distance_views(targets: Tensor, logits: Tensor) -> Tensor:
    """Mean over the pairs t != v of the squared distance of unit vectors, 2 - 2 cos.

    Args:
        targets: [T, B, K] of the teacher's views.
        logits: [V, B, K] of the student's views; the first T are the same crops.
    """
    a, b = F.normalize(targets.float(), dim=-1), F.normalize(logits.float(), dim=-1)
    pairs = 2 - 2 * torch.einsum("tbk,vbk->tvb", a, b).mean(-1)  # [T, V]
    return pairs[~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)].mean()


class DINOAblated(DINO):
    """Self-distillation with no labels, with the switches of its paper's ablations."""

    options: Options
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # table 7 of the paper
        "no momentum teacher": {"teacher": "copy"},
        "Sinkhorn-Knopp": {"centring": "sinkhorn"},
        "no centring": {"centring": "none"},
        "no multi-crop": {"local_crops": 0},
        "squared distance": {"loss": "mse"},
        "with predictor": {"predictor": True},
    }

    @dataclass(frozen=True, kw_only=True)
    class Options(DINO.Options):
        """DINO's own options and its ablations' switches."""

        teacher: str = "momentum"  # momentum, or copy: the student of the last step (lambda 0)
        centring: str = "centre"  # centre, sinkhorn (3 iterations) or none
        loss: str = "cross-entropy"  # cross-entropy, or mse of unit-length logits
        predictor: bool = False  # two layers between the student's bottleneck and its prototypes

    def __init__(self, backbone: Backbone, options: Options):
        for name, allowed in CHOICES.items():
            if getattr(options, name) not in allowed:
                raise unknown(name, getattr(options, name), allowed)
        super().__init__(backbone, options)
        widths = (options.bottleneck, options.hidden, options.bottleneck)
        self.predictor = mlp(widths) if options.predictor else nn.Identity()

    def step(self, batch: Batch, clock: Clock) -> Step:
        crops, b = batch.views["global"], batch.size  # [2, B, C, H, W]
        with torch.no_grad():
            h = self.teacher.module.backbone(crops.flatten(0, 1))  # [2B, D]
            t = self.teacher.module.head(h).float().unflatten(0, (2, b))  # [2, B, K]
        z = torch.cat([self.student.backbone(v.flatten(0, 1)) for v in batch.views.values()])
        head = self.student.head
        u = in_fp32(F.normalize)(self.predictor(head.mlp(z)), dim=-1)
        s = head.last_layer(u).float().unflatten(0, (-1, b))  # [V, B, K]

        targets = self.targets(t, self.teacher_temperature(clock))
        if self.options.loss == "mse":
            loss = squared_distance_views(t, s)
        else:
            loss = cross_entropy_views(targets, s / self.options.student_temperature)
        self.centre.observe(t, clock.step)
        logs = target_signals(targets) | {"teacher_momentum": self.momentum(clock)}
        return Step(loss, logs, features=h[:b])

    def targets(self, t: Tensor, tau: float) -> Tensor:
        """P_t [2, B, K] of the teacher's logits and its temperature."""
        if self.options.centring == "sinkhorn":
            return sinkhorn(t.flatten(0, 1), tau).unflatten(0, t.shape[:2])
        if self.options.centring == "none":
            return (t / tau).softmax(-1)
        return (t / tau - self.centre.value / tau).softmax(-1)

    def momentum(self, clock: Clock) -> float:
        """lambda of this step: the weight of the old teacher."""
        return 0.0 if self.options.teacher == "copy" else super().momentum(clock)

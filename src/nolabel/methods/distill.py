"""Distillation: a student learns what a frozen encoder knows, without labels.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531;
Romero et al., "FitNets: Hints for Thin Deep Nets", 2014, arXiv 1412.6550;
Fang et al., "SEED: Self-supervised Distillation for Visual Representation", 2021,
arXiv 2101.04731.

Teacher f_t (any ENC, frozen) and student f_s see the same view x of an image. A projection g, which
is discarded after training, maps the student's embedding to the teacher's space:

    t = f_t(x) / |f_t(x)|        z = g(f_s(x)) / |g(f_s(x))|

An encoder has no class logits to match (Hinton). SEED replaces them by similarities to anchors
a_1..a_K, the last K embeddings of the teacher, and to a_0 = t itself:

    p_j = softmax_j(t . a_j / tau_t)        q_j = softmax_j(z . a_j / tau_s)
    soft     = mean over the batch of  -sum_j p_j log q_j                           (SEED, eq. 3)
    features = mean over the batch of  |z - t|^2  =  2 - 2 cos(z, t)                (FitNets)
    loss     = w_soft soft + w_features features

Hinton multiplies the loss of soft targets by T^2, because with one temperature for both networks
its gradient scales as 1/T^2 (1/T from the student's softmax, 1/T from p - q). Here tau_t is fixed
and differs from tau_s, so p - q is of order one and only 1/tau_s remains; as in SEED there is no
factor.

Differs from the original:
  - SEED's teacher ends in the projection head of its own training (128 numbers); here t is the
    encoder's embedding, of any width, and no head of the teacher is needed;
  - FitNets regresses feature maps of a middle layer; here the unit embedding at the end;
  - the teacher sees the view at its own image size, resized from the student's;
  - tau_t = 0.01 as in the paper's text (the official code's default is 0.0001);
  - SEED's hidden layer is as wide as the student, here its width is an option;
  - until the queue is full, some anchors are random unit vectors, as in MoCo;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel.backbones.base import Backbone
from nolabel.device import in_fp32
from nolabel.errors import UsageError
from nolabel.limits import Count, NotNegative, Positive
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn.frozen import Frozen
from nolabel.nn.losses import entropy
from nolabel.nn.projectors import mlp
from nolabel.nn.queue import Queue
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan


class Distill(Method):
    """Distillation from a frozen encoder."""

    inputs = frozenset({"teacher"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Distillation's own options; defaults are SEED's for ResNet-18 on ImageNet."""

        teacher: str = ""  # ENC to learn from: a run folder, timm:NAME, ...
        soft: NotNegative = 1.0  # w_soft, weight of the cross-entropy of similarities (SEED)
        features: NotNegative = 0.0  # w_features, weight of the squared distance of unit embeddings
        anchors: Count = 65536  # K, size of the queue of teacher embeddings
        student_temperature: Positive = 0.2  # tau_s
        teacher_temperature: Positive = 0.01  # tau_t
        hidden: Count = 512  # width of the projection's hidden layer
        scale: tuple[float, float] = (0.2, 1.0)  # area of the crop, as share of the image
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a greyscale view
        blur: float = 0.5  # probability of blur
        solarise: float = 0.0  # probability of solarising
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options, *, teacher: Frozen):
        super().__init__(backbone, options)
        o = options
        if o.soft + o.features <= 0:
            raise UsageError("The weights soft and features are 0; one must be above 0.")
        self.backbone, self.teacher = backbone, teacher
        self.head = mlp([backbone.dim, o.hidden, teacher.module.dim], norm=False)  # g
        self.anchors = Queue(o.anchors, teacher.module.dim)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o = options
        view = View(
            name="view", size=image_size, scale=o.scale, jitter=o.jitter, grey=o.grey,
            blur=(o.blur,), blur_sigma=o.blur_sigma, solarise=(o.solarise,),
            interpolation="bilinear",
        )  # fmt: skip
        return ViewPlan(views=(view,))

    def step(self, batch: Batch, clock: Clock) -> Step:
        o = self.options
        x = batch.views["view"][0]  # [B, C, H, W]
        with torch.no_grad():
            t = F.normalize(self.teacher.module(self.teacher.prepare(x)).float(), dim=-1)
        h = self.backbone(x)
        z = F.normalize(self.head(h).float(), dim=-1)  # [B, D of the teacher]
        p, soft = similarities(
            z, t, self.anchors.value, o.student_temperature, o.teacher_temperature
        )
        distance = (z - t).square().sum(-1).mean()
        self.anchors.observe(t, clock.step)
        logs = {"soft": soft.detach(), "features": distance.detach(), "teacher_entropy": entropy(p)}
        return Step(o.soft * soft + o.features * distance, logs, features=h.detach())

    def after_update(self, clock: Clock) -> None:
        self.anchors.update()

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """SEED: ResNet-18 and other small networks, 200 epochs, batch 256, SGD."""
        batch = context.batch_size or 256
        optim = Optim(
            name="sgd", lr=0.03 * batch / 256, warmup_epochs=5, lr_end=0.0, weight_decay=1e-4,
            decay_all=True,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=200)


@in_fp32
def similarities(
    z: Tensor, t: Tensor, anchors: Tensor, student: float, teacher: float
) -> tuple[Tensor, Tensor]:
    """The teacher's distribution over t itself and the anchors, and its cross-entropy.

    Args:
        z, t: unit embeddings [B, D] of student and teacher, fp32.
        anchors: unit vectors [K, D].
        student, teacher: temperatures.

    Returns:
        p [B, 1 + K] and the scalar loss.
    """
    logits = torch.cat([(z * t).sum(-1, keepdim=True), z @ anchors.T], 1) / student
    p = (torch.cat([(t * t).sum(-1, keepdim=True), t @ anchors.T], 1) / teacher).softmax(-1)
    return p, -(p * logits.log_softmax(-1)).sum(-1).mean()

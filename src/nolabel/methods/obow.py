"""OBoW: online bags of visual words.

Gidaris et al., "OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning", 2020,
arXiv 2012.11552.

A momentum teacher T turns an image into feature maps of its last levels. A vocabulary of K visual
words v_k is a queue of local teacher features. Every location u of a map is softly assigned to the
words; the image's bag of words is the largest assignment of each word over the locations,
normalised to sum 1:

    q_u = softmax_k( -|t_u - v_k|^2 / delta ),  delta = temperature * running mean of min_k |.|^2
    y   = max_u q_u / sum_k max_u q_u,k                                              (section 3.1)

A student S sees other crops and predicts the bag from its global feature, with word weights that a
small network G computes from the current words (the vocabulary changes in each step):

    p    = softmax_k( kappa S(x) . G(v_k) / |G(v_k)| )                               (eq. 4 and 5)
    loss = sum over large and small crops of the mean over these and over levels of
           -sum_k y_k log p_k                                                        (eq. 1)
    T   <- alpha T + (1 - alpha) S,  alpha from alpha_0 to 1 by half a cosine

After each step one local feature an image, averaged over 3 x 3 locations, replaces the oldest
words. The border of a map is left out, unless it is less than 5 wide.

Differs from the original:
  - the student's small crops are random crops of the same areas (the official code cuts them out
    of a 3 x 3 grid with jitter, all out of one larger crop with one change of colours);
  - initial words are random unit vectors, and until all are replaced the mean distance is that of
    the last batch (in the official code a running mean from 0.5);
  - a batch's distances count from the next step on (there already in its own bags), so that
    gradient accumulation equals the large batch;
  - the words are replaced after the update, by the features of all ranks;
  - the loss is a cross-entropy, the official KL divergence without its constant;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel import distributed
from nolabel.backbones.base import Backbone, probe_layers
from nolabel.backbones.resnet import ResNet
from nolabel.device import in_fp32
from nolabel.limits import Count, Positive, Share
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn.assignment import prototype_scores
from nolabel.nn.losses import target_signals
from nolabel.nn.projectors import mlp
from nolabel.nn.queue import Queue
from nolabel.nn.schedules import momentum
from nolabel.nn.state import Ema, StepBuffer
from nolabel.types import Batch, Clock, Optim, Step, Tokens
from nolabel.views.plan import View, ViewPlan


@in_fp32
def bag_of_words(t: Tensor, words: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Bags y [B, K] of local features t [B, P, D] for words [K, D], and the mean of
    min_k |t_u - v_k|^2 (a scalar)."""
    squared = torch.cdist(t, words.expand(len(t), -1, -1)).square()  # [B, P, K]
    y = (-squared / delta).softmax(-1).amax(1)
    return y / y.sum(-1, keepdim=True), squared.amin(-1).mean()


def inner(level: Tokens) -> Tensor:
    """Feature map [B, D, h, w] of a level without its border, if it is 5 wide or more."""
    maps = level.patches.float().mT.unflatten(2, level.grid)
    return maps[..., 1:-1, 1:-1] if min(level.grid) >= 5 else maps


@torch.no_grad()
def one_location(maps: Tensor) -> Tensor:
    """One random location's feature [B, D] of each map, averaged over 3 x 3 locations."""
    padding = 0 if min(maps.shape[-2:]) >= 3 else 1
    maps = F.avg_pool2d(maps, 3, 1, padding=padding, count_include_pad=False).flatten(2)
    locations, device = maps.shape[2], maps.device
    location = distributed.draw_for_rank(
        lambda n: torch.randint(locations, (n,), device=device), len(maps)
    )
    return maps[torch.arange(len(maps), device=device), :, location]


class OBoW(Method):
    """Online bags of visual words: predict which current visual words an image contains."""

    needs = frozenset({"any_size", "patches"})
    own_norms = ("generators",)  # their input, the words, is equal on all ranks
    spread: Tensor
    vocabulary: Any  # a Queue of words for each level
    generators: Any  # G for each level

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """OBoW's own options; defaults are the paper's for ResNet-50 on ImageNet."""

        words: Count = 8192  # K, size of the vocabulary
        levels: Count = 2  # number of last levels with a bag each (stages, or blocks of a ViT)
        temperature: Positive = 1 / 15  # of the assignment, relative to the mean squared distance
        spread_momentum: Share = 0.99  # of the running mean of min_k |t_u - v_k|^2
        kappa: Positive = 8.0  # kappa, scale of the student's predictions
        teacher_momentum: Share = 0.99  # alpha in the first step; 1 in the last
        global_scale: tuple[float, float] = (0.08, 0.6)  # area of the two large crops, as share
        local_scale: tuple[float, float] = (0.08, 0.14)  # area of its small crops, as share
        local_crops: int = 5  # number of small crops; 0 = none
        global_size: int = 160  # side of the large crops in pixels
        local_size: int = 96  # side of the small crops in pixels
        teacher_grey: float = 0.0  # probability that the teacher's image is grey
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # b, c, s, hue; p 0.8
        grey: float = 0.2  # probability of a greyscale crop
        blur: float = 0.5  # probability of blur of the large crops
        solarise: float = 0.0  # probability of solarising a large crop
        blur_sigma: tuple[float, float] = (0.1, 2.0)  # standard deviation, pixels

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        self.student = backbone
        self.teacher = Ema(backbone)  # initially equal
        dims = [level.patches.shape[-1] for level in probe_layers(backbone, o.levels)]
        self.vocabulary = nn.ModuleList(Queue(o.words, d) for d in dims)
        width = backbone.dim
        self.generators = nn.ModuleList(
            mlp((d, 2 * width, width), bias=False, last_bias=True) for d in dims
        )
        self.register_buffer("spread", torch.ones(len(dims)))
        self._spreads = StepBuffer()

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code: the last norm of each block of a ResNet starts at 1."""
        if isinstance(backbone, ResNet):
            backbone.start_branches_at_one()

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o = options
        colour: dict[str, Any] = {"flip": 0.5, "jitter": o.jitter, "jitter_p": 0.8, "grey": o.grey,
                                  "interpolation": "bilinear"}  # fmt: skip
        views = [  # the teacher sees the centre of the whole image
            View(name="teacher", size=image_size, scale=None, resize=image_size * 8 // 7, flip=0.5,
                 grey=o.teacher_grey, interpolation="bilinear"),
            View(name="large", count=2, size=o.global_size, scale=o.global_scale, blur=(o.blur,),
                 blur_sigma=o.blur_sigma, solarise=(o.solarise,), **colour),
        ]  # fmt: skip
        if o.local_crops:
            views.append(View(name="small", count=o.local_crops, size=o.local_size,
                              scale=o.local_scale, **colour))  # fmt: skip
        return ViewPlan(views=tuple(views))

    def step(self, batch: Batch, clock: Clock) -> Step:
        o, b = self.options, batch.size
        with torch.no_grad():
            levels = self.teacher.module.layers(batch.views["teacher"][0], o.levels)
        h = [self.student(x.flatten(0, 1)) for n, x in batch.views.items() if n != "teacher"]
        losses, spreads, bags = [], [], []
        for i, level in enumerate(levels):
            words, t = self.vocabulary[i].value, inner(level)
            with torch.no_grad():
                y, spread = bag_of_words(t.flatten(2).mT, words, o.temperature * self.spread[i])
            weights = F.normalize(self.generators[i](F.normalize(words, dim=-1)).float(), dim=-1)
            for s in h:  # [V B, D] of the large crops, then of the small ones
                scores = prototype_scores(o.kappa * s.float(), weights)
                log_p = F.log_softmax(scores, -1).unflatten(0, (-1, b))
                losses.append(-(y * log_p).sum(-1).mean())
            self.vocabulary[i].observe(one_location(t), clock.step)
            spreads.append(spread)
            bags.append(y)
        self._spreads.add(clock.step, torch.stack(spreads)[None])  # [1, levels]
        logs = target_signals(bags[-1]) | {"teacher_momentum": self.momentum(clock)}
        return Step(torch.stack(losses).sum() / len(levels), logs, features=h[0][:b].detach())

    def momentum(self, clock: Clock) -> float:
        """alpha with which the teacher moved before this step's bags: the old one's weight."""
        return momentum(self.options.teacher_momentum, clock)

    @torch.no_grad()
    def after_update(self, clock: Clock) -> None:
        following = dataclasses.replace(clock, step=clock.step + 1)
        self.teacher.follow(self.student, self.momentum(following))
        (spreads,) = self._spreads.take()  # [micro-batches, levels]
        spread = distributed.mean(spreads.mean(0))
        # Distances to initial random words are not representative: no running mean yet.
        m = self.options.spread_momentum if self.vocabulary[0].full else 0.0
        self.spread.mul_(m).add_(spread, alpha=1 - m)
        for words in self.vocabulary:
            words.update()

    @property
    def encoder(self) -> Backbone:
        """The student, which the paper evaluates."""
        return self.student

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ResNet-50, 200 epochs, batch 256, SGD."""
        batch = context.batch_size or 256
        optim = Optim(
            name="sgd", lr=0.03 * batch / 256, warmup_epochs=10, lr_end=3e-5 * batch / 256,
            weight_decay=1e-4, decay_all=True,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=200)

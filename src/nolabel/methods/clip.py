"""CLIP: contrastive language-image pre-training.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv 2103.00020.

An image encoder f and a text transformer g, each with a linear projection into a shared space, give
unit vectors x_i and y_i of B images and their captions. Each one is matched with its partner:

    logits   = s x_i . y_j,  s = exp(t)                                              (figure 3)
    loss     = 1/2 (cross-entropy over the texts of each image
                    + cross-entropy over the images of each text)

s is learnt, initially 1 / 0.07, and clipped to [1, 100] (§2.5). The embeddings of other ranks are
candidates too, all-gathered with gradient.

Differs from the original:
  - the image's embedding is that of any backbone of ours (the original's ViT has a norm in front,
    timm's vit_base_patch16_clip_quickgelu_224; its ResNets pool by attention, ours by the mean);
  - images are normalised by this library's mean and deviation;
  - any --vocabulary but 49408 is learnt from the captions of the training data;
  - biases of the text tower start at zero;
  - the matrix of logits may be computed in blocks (`chunk`), with the same loss and gradients;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nolabel.backbones.base import Backbone
from nolabel.backbones.text import SharedSpace
from nolabel.data.text.tokenizer import PUBLISHED, Tokenizer, make_tokenizer
from nolabel.limits import Count, Positive, Whole
from nolabel.methods.base import Contrastive, Recipe, RecipeContext
from nolabel.methods.capabilities import LearnsFromText
from nolabel.nn.contrastive import clip_loss, pair_signals
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan

MOST_SCALE = 100.0  # s is clipped to it, for stability (§2.5)


class CLIP(Contrastive, LearnsFromText):
    """Contrastive language-image pre-training."""

    inputs = frozenset({"text"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """CLIP's own options; defaults are the paper's for ViT-B."""

        vocabulary: Count = PUBLISHED  # tokens: 49408 = CLIP's own (extra clip), else most to learn
        context: Count = 77  # longest caption in tokens, start and end included
        projection: Count = 512  # width of the shared space
        text_dim: Count = 512  # width of the text tower
        text_depth: Count = 12  # blocks of the text tower
        text_heads: Count = 8  # attention heads of the text tower
        quick_gelu: bool = True  # x sigmoid(1.702 x) in the text tower, else the exact GELU
        temperature: Positive = 0.07  # initial 1 / s
        chunk: Whole = 0  # rows of the logits in memory at a time, for large batches; 0 = all
        scale: tuple[float, float] = (0.9, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options, *, text: Tokenizer):
        super().__init__(backbone, options)
        o = options
        self.backbone, self.tokenizer = backbone, text
        self.shared = SharedSpace(
            backbone.dim, vocabulary=text.vocabulary, context=o.context, dim=o.text_dim,
            depth=o.text_depth, heads=o.text_heads, out=o.projection, quick_gelu=o.quick_gelu,
            scale=1 / o.temperature,
        )  # fmt: skip

    @classmethod
    def make_tokenizer(cls, options: Options, texts: Iterable[str]) -> Tokenizer:
        return make_tokenizer(options.vocabulary, options.context, texts)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        view = View(name="image", size=image_size, scale=options.scale, flip=0.0)
        return ViewPlan(views=(view,))

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        x = batch.views["image"][0]  # [B, C, H, W]
        text = self.shared.texts(self.tokenizer(batch.text or ()).to(x.device))
        return self.backbone(x)[None], text[None]

    def compare(self, features: tuple[Tensor, ...], clock: Clock) -> Step:
        h, y = (f[0] for f in features)  # [B, D], [B, E]
        x = self.shared.images(h)  # [B, E]
        s = self.shared.scale
        loss = clip_loss(x, y, s, chunk=self.options.chunk)
        logs = pair_signals(x, y) | {"scale": s.detach()}
        return Step(loss, logs, features=h.detach())

    @torch.no_grad()
    def after_update(self, clock: Clock) -> None:
        self.shared.log_scale.clamp_(0.0, math.log(MOST_SCALE))

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-B on 400 million pairs, 32 epochs, batch 32768."""
        batch = context.batch_size or 32768
        optim = Optim(
            lr=5e-4, warmup_epochs=2000 * batch / max(context.images, 1), lr_end=0.0,
            weight_decay=0.2, beta2=0.98, eps=1e-6,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=32)

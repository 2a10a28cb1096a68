"""DeepCluster v2: clusters of the last epoch's embeddings are the labels of this one.

Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", 2018,
arXiv 1807.05520; v2 as improved in "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments" (SwAV), 2020, arXiv 2006.09882, appendix D.

A memory has the unit embeddings z of both global crops of each image from the epoch before. At the
end of an epoch, spherical k-means runs on the memory, once for each of three heads, with K
centroids; the centroids become the prototypes, the nearest one is the image's label y:

    loss = mean over heads, and over all crops, of  -log softmax(z . c / tau)_y

The prototypes are not trained. The heads use the memory of the first and of the second crop in
turn.

Differs from the original:
  - the first epoch only fills the memory: its loss is 0 and no weight changes (the official code
    makes that pass before training starts, and then counts epochs from 0); a run that ends with it
    is refused;
  - an image that was left out of an epoch (the incomplete last batch) keeps its older embedding;
    the official code leaves it without a label;
  - each rank has the memory of all images and computes the same k-means; the official code
    distributes both;
  - batch norm uses the images of all ranks (in the official code of groups of ranks);
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nolabel import distributed
from nolabel.backbones.base import Backbone
from nolabel.backbones.resnet import ResNet
from nolabel.errors import UsageError
from nolabel.limits import Count, Positive, Whole
from nolabel.methods.base import HasPrototypes, Method, Recipe, RecipeContext
from nolabel.nn.assignment import prototype_scores, spherical_kmeans
from nolabel.nn.projectors import mlp
from nolabel.nn.state import StepBuffer
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import ViewPlan
from nolabel.views.standard import multi_crop
from nolabel.views.swav_crops import SwAVCrops

UNKNOWN = -100  # label of an image that no epoch has seen; cross_entropy leaves it out


class DeepClusterV2(Method, HasPrototypes):
    """Deep clustering: k-means on the memory of embeddings labels the images, epoch by epoch."""

    needs = frozenset({"any_size"})
    memory: Tensor
    labels: Tensor
    prototypes: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(SwAVCrops):
        """DeepCluster v2's own options; defaults are the paper's for ResNet-50 on ImageNet."""

        images: Count = 1_281_167  # size of the training set, and of the memory
        clusters: Count = 3000  # K, of each head
        heads: Count = 3  # number of clusterings
        iterations: Whole = 10  # of k-means; 0: the initial centroids
        hidden: Count = 2048  # width of the head's hidden layer
        projection: Count = 128  # width of z
        temperature: Positive = 0.1  # tau

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        if o.clusters > o.images:
            raise UsageError(
                f"clusters is {o.clusters}, but there are {o.images} images. Use --clusters "
                f"{max(o.images // 10, 1)}."
            )
        self.backbone = backbone
        self.projector = mlp((backbone.dim, o.hidden, o.projection))
        self.register_buffer("memory", torch.zeros(2, o.images, o.projection))
        self.register_buffer("labels", torch.full((o.heads, o.images), UNKNOWN))
        self.register_buffer("prototypes", torch.zeros(o.heads, o.clusters, o.projection))
        self._new = StepBuffer()

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code: the last norm of each block of a ResNet starts at 1."""
        if isinstance(backbone, ResNet):
            backbone.start_branches_at_one()

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o = options
        return multi_crop(
            image_size, o, blur=(o.blur,), solarise=(o.solarise,), local_blur=o.blur,
            interpolation="bilinear",
        )  # fmt: skip

    def step(self, batch: Batch, clock: Clock) -> Step:
        b, keys = batch.size, batch.keys
        if clock.total <= clock.steps_per_epoch:
            raise UsageError(
                f"The run has {clock.total} steps and an epoch {clock.steps_per_epoch}: the first "
                "epoch only collects the embeddings that are clustered after it, so that nothing "
                "would be learnt. Use --epochs 2 or more, or less data."
            )
        if keys is None or int(keys.max()) >= self.options.images:
            raise UsageError(
                f"The memory is for {self.options.images} images, numbered in `batch.keys`. Set "
                "--images to the size of the training set."
            )
        h = [self.backbone(v.flatten(0, 1)) for v in batch.views.values()]
        z = F.normalize(self.projector(torch.cat(h)).float(), dim=-1)
        z = z.unflatten(0, (-1, b))  # [V, B, projection], globals first
        labels = self.labels[:, keys]  # [heads, B]
        losses = [self._head_loss(z, c, y) for c, y in zip(self.prototypes, labels, strict=True)]
        self._new.add(clock.step, keys, z[:2].transpose(0, 1))
        logs = {"labels_used": labels[0][labels[0] >= 0].unique().numel()}
        return Step(torch.stack(losses).mean(), logs, features=h[0][:b].detach())

    def _head_loss(self, z: Tensor, prototypes: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of all crops z [V, B, D] whose image has a label y [B]."""
        scores = prototype_scores(z, prototypes).flatten(0, 1) / self.options.temperature
        total = F.cross_entropy(scores, y.repeat(len(z)), ignore_index=UNKNOWN, reduction="sum")
        return distributed.ratio(total, len(z) * (y != UNKNOWN).sum())

    def before_update(self, clock: Clock) -> None:
        if not (self.labels >= 0).any():  # no loss yet: weight decay must not act alone
            for p in self.parameters():
                p.grad = None

    @torch.no_grad()
    def after_update(self, clock: Clock) -> None:
        keys, z = (distributed.gather(x) for x in self._new.take())  # [B], [B, 2, D]
        self.memory[:, keys] = z.transpose(0, 1)
        if (clock.step + 1) % clock.steps_per_epoch == 0:
            self.cluster(clock.step)

    @torch.no_grad()
    def cluster(self, seed: int) -> None:
        """k-means on the memory for each head: new prototypes and labels."""
        has_embedding = self.memory[0].norm(dim=-1) > 0
        images = has_embedding.nonzero().flatten()
        # Seeded by the step, so that all ranks choose the same initial centroids.
        generator = torch.Generator().manual_seed(seed)
        for head in range(self.options.heads):
            z = self.memory[head % 2][images]
            chosen = torch.randperm(len(z), generator=generator)[: self.options.clusters]
            centroids, label = spherical_kmeans(z, z[chosen.to(z.device)], self.options.iterations)
            self.prototypes[head, : len(centroids)] = centroids
            self.labels[head, images] = label

    def prototype_logits(self, h: Tensor) -> Tensor:
        """Logits [N, K] of embeddings [N, D], for the first clustering."""
        return prototype_scores(F.normalize(self.projector(h).float(), dim=-1), self.prototypes[0])

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ResNet-50, 800 epochs, batch 4096, SGD with LARC."""
        batch = context.batch_size or 4096
        lr = 4.8 * batch / 4096
        optim = Optim(
            name="larc", lr=lr, lr_start=lr / 16, warmup_epochs=10, lr_end=lr / 1000,
            weight_decay=1e-6, decay_all=True,
        )  # fmt: skip
        options = cls.Options(images=context.images, clusters=min(3000, context.images))
        return Recipe(options=options, optim=optim, batch_size=batch, epochs=800)

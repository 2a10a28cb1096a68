"""EVA: masked prediction of a frozen encoder's features.

Fang et al., "EVA: Exploring the Limits of Masked Visual Representation Learning at Scale", 2022,
arXiv 2211.07636.

A frozen encoder sees the whole image and gives a feature f_i for every patch i. The student sees
the image with blocks of patches M (40 %) replaced by a mask token, and predicts the features there:

    loss = -(1 / |M|) sum over i in M of  cos(W h_i + b, f_i)

h_i are the student's tokens after its last norm; M are all hidden patches of the batch.

Differs from the original:
  - the teacher may be any ENC, its f_i are the patch tokens after its last norm, and after the
    projection into the space of texts if it has a text tower; EVA's is CLIP-L;
  - the teacher sees the image resized so that its grid of patches equals the student's;
  - EVA's networks (giant, later SwiGLU and rotary positions) are not needed: any ViT learns;
  - normalisation is the run's, not CLIP's, and is converted for the teacher;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel import distributed
from nolabel.backbones.base import Backbone
from nolabel.backbones.init import init_like_beit
from nolabel.backbones.vit import ViT
from nolabel.errors import UsageError
from nolabel.limits import Count, Share
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn.frozen import Frozen
from nolabel.nn.masks import block_masks
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan


class EVA(Method):
    """Masked prediction of a frozen encoder's features."""

    needs = frozenset({"mask"})
    inputs = frozenset({"teacher"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """EVA's own options; defaults are the paper's for ViT-g/14."""

        teacher: str = ""  # ENC whose patch features are predicted: timm:NAME, a run folder, ...
        mask_ratio: float = 0.41  # largest share of masked patches (EVA: 105 of 256)
        smallest_block: Count = 16  # least area of a masked block, in patches
        drop_path: Share = 0.1  # stochastic depth
        scale: tuple[float, float] = (0.2, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options, *, teacher: Frozen):
        super().__init__(backbone, options)
        o = options
        patches = (backbone.image_size // backbone.patch_size) ** 2
        if not 0.0 < o.mask_ratio < 1.0:
            raise UsageError(f"mask_ratio is {o.mask_ratio}; it must lie between 0 and 1.")
        if not 0 < o.smallest_block <= o.mask_ratio * patches:
            raise UsageError(
                f"smallest_block is {o.smallest_block}; it must be between 1 and the "
                f"{int(o.mask_ratio * patches)} patches to hide. Use --smallest-block "
                f"{max(int(o.mask_ratio * patches / 5), 1)}, or a smaller --patch-size."
            )
        self.backbone, self.teacher = backbone, teacher
        self.mask_token = nn.Parameter(torch.empty(backbone.dim).normal_(std=0.02))
        side = backbone.image_size
        width = self.targets(torch.zeros(1, backbone.channels, side, side)).shape[-1]
        self.head = nn.Linear(backbone.dim, width)  # W, b
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        backbone.set_drop_path(o.drop_path)

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As BEiT, like the official code, but Xavier-uniform matrices in narrow ViTs."""
        if isinstance(backbone, ViT):
            init_like_beit(backbone.net)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return ViewPlan(views=(View(name="image", size=image_size, scale=options.scale, flip=0.5),))

    @torch.no_grad()
    def targets(self, x: Tensor) -> Tensor:
        """The teacher's unit patch features [B, P, D] of whole images, on the student's grid."""
        grid = (x.shape[-2] // self.backbone.patch_size, x.shape[-1] // self.backbone.patch_size)
        patch = self.teacher.module.patch_size
        image = self.teacher.prepare(x, (grid[0] * patch, grid[1] * patch))
        out = self.teacher.module.tokens(image)
        if out.grid != grid:
            raise UsageError(
                f"The teacher's patches form a grid of {out.grid[0]} x {out.grid[1]} and the "
                f"student's one of {grid[0]} x {grid[1]}. Use another teacher, such as a ViT."
            )
        f, project = out.patches.float(), self.teacher.projection
        return F.normalize(f if project is None else project(f), dim=-1)

    def draw_masks(self, x: Tensor) -> Tensor:
        """Blocks of hidden patches, bool [B, P]."""
        o, side = self.options, x.shape[-1] // self.backbone.patch_size
        counts = np.full(len(x), round(o.mask_ratio * side * side))
        return block_masks(counts, (side, side), smallest=o.smallest_block).to(x.device)

    def step(self, batch: Batch, clock: Clock) -> Step:
        x = batch.views["image"][0]  # [B, C, H, W]
        f, mask = self.targets(x), self.draw_masks(x)
        out = self.backbone.tokens(x, mask=mask, mask_token=self.mask_token)
        predicted = self.head(out.patches).float()  # [B, P, D of the teacher]
        agreement = F.cosine_similarity(predicted, f, dim=-1)  # [B, P]
        loss = distributed.ratio(-(agreement * mask).sum(), mask.sum())
        seen = (agreement.detach() * ~mask).sum() / (~mask).sum().clamp(min=1)
        logs = {"hidden": mask.float().mean(), "agreement_seen": seen}
        return Step(loss, logs, features=out.pooled.detach())

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-g/14, 150 epochs, batch 4096."""
        batch = context.batch_size or 4096
        optim = Optim(
            lr=1e-3, warmup_epochs=2, lr_end=1e-5, weight_decay=0.05, beta2=0.98, eps=1e-6,
            clip=3.0, undecayed=("cls_token", "pos_embed"), decayed=("mask_token",),
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=150)

"""SimMIM: a simple framework for masked image modelling.

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", 2021, arXiv 2111.09886.

An image is cut into square units; a share of them (60 %), drawn at random, is hidden: a learned
mask token replaces the embeddings of their patches, and the encoder gets all tokens. One linear
layer predicts the pixels of its square from each final token. With the normalised
pixels x, the prediction y and m = 1 on hidden pixels, 0 elsewhere,

    loss = sum of m |x - y|  /  (sum of m + 1e-5)  /  C channels

over the whole batch. Hidden units are larger than the patches that are embedded (32 pixels against
4 in Swin), so that copying neighbouring pixels does not help.

Differs from the original:
  - any backbone that can mask, so the ViT is timm's, with absolute positions that start as sines,
    where the paper's has relative ones, shared by its layers, and LayerScale;
  - matrices start Xavier-uniform: at the paper's widths that is close to its deviation of 0.02,
    with which the branches of a network of width 64 add almost nothing for hundreds of steps;
  - units may have any side that divides the image and that embedded patches divide;
  - a Swin's tables of relative positions do not decay, which the official code means and misses;
    nor does the mask token, which there does with a ViT;
  - the rate falls by a cosine, as in the official recipe for 100 epochs; the one for 800 epochs
    has a step;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.init import init_like_mae, sincos_positions
from nolabel.backbones.vit import ViT
from nolabel.errors import UsageError
from nolabel.limits import Count
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.methods.capabilities import Inpaints
from nolabel.nn.masked import masked_l1
from nolabel.nn.masks import mask_noise, unit_masks
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan


class SimMIM(Method, Inpaints):
    """Masked image modelling with mask tokens in the encoder and one linear layer behind it."""

    needs = frozenset({"mask"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """SimMIM's own options; defaults are the paper's at 192 and 224 px."""

        mask_ratio: float = 0.6  # share of units hidden, above 0 and below 1
        unit: Count = 32  # side of a unit in pixels; divides the image's, a multiple of a patch's
        scale: tuple[float, float] = (0.67, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        if not 0.0 < options.mask_ratio < 1.0:
            raise UsageError(f"mask_ratio is {options.mask_ratio}; it must lie between 0 and 1.")
        side, patch = backbone.image_size, backbone.mask_patch
        if not 0 < options.unit < side or side % options.unit or options.unit % patch:
            fit = [str(u) for u in range(patch, side, patch) if side % u == 0]
            raise UsageError(
                f"unit is {options.unit} px; it must be smaller than the image's {side} px and "
                f"divide them, and be a multiple of the patch's {patch} px. "
                f"Use {', '.join(fit) or 'smaller patches'}."
            )
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.empty(backbone.mask_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        stride = backbone.patch_size
        self.decoder = nn.Conv2d(backbone.dim, stride * stride * backbone.channels, 1)

    @staticmethod
    def init(backbone: Backbone) -> None:
        """Xavier-uniform matrices and, in a ViT, sine-cosine position embeddings, which are
        trained."""
        init_like_mae(backbone)
        if isinstance(backbone, ViT) and backbone.net.pos_embed is not None:
            grid = backbone.image_size // backbone.patch_size
            prefix = backbone.net.pos_embed.shape[1] - grid * grid
            backbone.net.pos_embed.data.copy_(sincos_positions(backbone.dim, grid, prefix))

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return ViewPlan(views=(View(name="image", size=image_size, scale=options.scale, flip=0.5),))

    def masks(self, x: Tensor, ratio: float, noise: Tensor) -> Tensor:
        """ceil(ratio * units) hidden units an image, those of smallest noise [B, units].

        Returns:
            bool [B, M] on the grid of `mask_patch`, True = hidden.
        """
        units = (x.shape[-2] // self.options.unit, x.shape[-1] // self.options.unit)
        scale = self.options.unit // self.backbone.mask_patch
        return unit_masks(noise, units, ratio, scale).to(x.device)

    def draw_masks(self, x: Tensor) -> Tensor:
        """`masks` of a step, drawn at random."""
        units = (x.shape[-2] // self.options.unit) * (x.shape[-1] // self.options.unit)
        return self.masks(x, self.options.mask_ratio, mask_noise(len(x), units))

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hides patches by mask [B, M] and predicts all pixels.

        Returns:
            prediction [B, C, H, W], embedding [B, D].
        """
        seen = self.backbone.tokens(x, mask=mask, mask_token=self.mask_token)
        features = seen.patches.transpose(1, 2).unflatten(2, seen.grid)  # [B, D, h, w]
        pixels = F.pixel_shuffle(self.decoder(features), self.backbone.patch_size)
        return pixels.float(), seen.pooled

    def step(self, batch: Batch, clock: Clock) -> Step:
        x = batch.views["image"][0]  # [B, C, H, W]
        mask = self.draw_masks(x)
        pred, pooled = self.predict(x, mask)
        p = self.backbone.mask_patch
        m = mask.unflatten(1, (x.shape[-2] // p, x.shape[-1] // p)).unsqueeze(1)
        m = m.repeat_interleave(p, 2).repeat_interleave(p, 3)  # [B, 1, H, W]
        return Step(masked_l1(pred, x, m), features=pooled.detach())

    @torch.no_grad()
    def inpaint(
        self, x: Tensor, ratio: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predicted images [B, C, H, W] and the hidden units bool [B, h, w]."""
        unit, p = self.options.unit, self.backbone.mask_patch
        h, w = x.shape[-2] // unit, x.shape[-1] // unit
        noise = torch.rand(len(x), h * w, generator=generator)
        mask = self.masks(x, ratio, noise)
        hidden = mask.unflatten(1, (x.shape[-2] // p, x.shape[-1] // p))
        return self.predict(x, mask)[0], hidden[:, :: unit // p, :: unit // p]

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """Swin-B at 192 px, 100 epochs, batch 2048."""
        batch = context.batch_size or 2048
        optim = Optim(
            lr=2e-4 * batch / 512, warmup_epochs=10, lr_start=1e-6 * batch / 512,
            lr_end=1e-5 * batch / 512, weight_decay=0.05, undecayed=("cls_token", "pos_embed"),
            clip=5.0,
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=100)

"""MAE: masked autoencoder.

He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021, arXiv 2111.06377.

An image is cut into patches; a share of them (75 %) is removed at random. The encoder sees the
visible patches only. A small decoder gets their codes, a shared mask token for each removed patch
and fixed position embeddings, and predicts the pixels:

    loss = mean over removed patches of  mean over pixels of (prediction - target)^2

The target is the patch's pixels, or (norm_pix) those pixels with zero mean and unit variance.

Differs from the original:
  - images may be of any size and patch; the decoder's width, depth and heads are options;
  - the automatic recipe is ours, for small data and small machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.decoder import transformer_blocks
from nolabel.backbones.init import init_like_mae, sincos_positions
from nolabel.backbones.vit import ViT
from nolabel.errors import UsageError
from nolabel.limits import Count
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.methods.capabilities import Inpaints
from nolabel.nn.masked import masked_mse
from nolabel.nn.masks import mask_noise
from nolabel.nn.patches import keep_by_noise, normalise_patches, patchify, unpatchify
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan


class MAE(Method, Inpaints):
    """Masked autoencoder."""

    needs = frozenset({"drop"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """MAE's own options; defaults are the paper's for ViT-B and larger."""

        mask_ratio: float = 0.75  # share of patches removed, above 0 and below 1
        norm_pix: bool = True  # targets normalised per patch (better features) or raw pixels
        decoder_dim: Count = 512  # width of the decoder
        decoder_depth: Count = 8  # blocks of the decoder
        decoder_heads: Count = 16  # attention heads of the decoder
        scale: tuple[float, float] = (0.2, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        if not 0.0 < o.mask_ratio < 1.0:
            raise UsageError(f"mask_ratio is {o.mask_ratio}; it must lie between 0 and 1.")
        if o.decoder_dim % o.decoder_heads:
            raise UsageError(
                f"decoder_dim {o.decoder_dim} is no multiple of decoder_heads {o.decoder_heads}."
            )
        patch = backbone.patch_size
        self.backbone, self.patch = backbone, patch
        self.knows_statistics = o.norm_pix
        grid = backbone.image_size // patch
        self.decoder_embed = nn.Linear(backbone.dim, o.decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, o.decoder_dim).normal_(std=0.02))
        self.register_buffer("decoder_pos_embed", sincos_positions(o.decoder_dim, grid))
        self.decoder_blocks = transformer_blocks(o.decoder_dim, o.decoder_depth, o.decoder_heads)
        self.decoder_norm = nn.LayerNorm(o.decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(o.decoder_dim, patch * patch * backbone.channels)
        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            init_like_mae(module)
        if isinstance(backbone, ViT):
            backbone.net.pos_embed.requires_grad_(False)  # fixed, set by `init`

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code, with fixed sine-cosine position embeddings."""
        if isinstance(backbone, ViT):
            init_like_mae(backbone.net)
            grid = backbone.image_size // backbone.patch_size
            table = sincos_positions(backbone.dim, grid, backbone.net.num_prefix_tokens)
            backbone.net.pos_embed.data.copy_(table)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return ViewPlan(views=(View(name="image", size=image_size, scale=options.scale, flip=0.5),))

    def predict(self, x: Tensor, noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Removes patches by noise [B, P] and predicts all of them.

        Returns:
            pred [B, P, patch*patch*C], mask [B, P] (1 = removed), embedding [B, D].
        """
        keep, restore, mask = keep_by_noise(noise, ratio)
        seen = self.backbone.tokens(x, keep=keep)  # the visible patches only
        prefix = seen.prefix if seen.prefix is not None else seen.patches[:, :0]
        front = self.decoder_embed(prefix[:, :1])
        codes = self.decoder_embed(seen.patches)
        gaps = self.mask_token.to(codes.dtype).expand(len(x), restore.shape[1] - codes.shape[1], -1)
        full = torch.cat([codes, gaps], 1)
        full = full.gather(1, restore.unsqueeze(-1).expand(-1, -1, full.shape[-1]))
        full = torch.cat([front, full], 1) + self.decoder_pos_embed
        out = self.decoder_pred(self.decoder_norm(self.decoder_blocks(full)))
        return out[:, 1:].float(), mask, seen.pooled

    def step(self, batch: Batch, clock: Clock) -> Step:
        x = batch.views["image"][0]  # [B, C, H, W]
        noise = mask_noise(len(x), self.decoder_pos_embed.shape[1] - 1, x.device)  # [B, P]
        pred, mask, pooled = self.predict(x, noise, self.options.mask_ratio)
        target = patchify(x, self.patch)
        if self.options.norm_pix:
            target = normalise_patches(target)[0]
        return Step(masked_mse(pred, target, mask), features=pooled.detach())

    @torch.no_grad()
    def inpaint(
        self, x: Tensor, ratio: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predicted images [B, C, H, W] and the removed patches bool [B, h, w].

        With norm_pix, the predicted patches get their true mean and standard deviation, which the
        network does not predict.
        """
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        noise = torch.rand(len(x), grid[0] * grid[1], generator=generator).to(x.device)
        pred, mask, _ = self.predict(x, noise, ratio)
        if self.options.norm_pix:
            _, mean, std = normalise_patches(patchify(x, self.patch))
            pred = pred * std + mean
        return unpatchify(pred, self.patch, grid), mask.bool().unflatten(1, grid)

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-B/16 and larger, 800 epochs, batch 4096."""
        batch = context.batch_size or 4096
        optim = Optim(
            lr=1.5e-4 * batch / 256, warmup_epochs=40, lr_end=0.0, weight_decay=0.05, beta2=0.95
        )
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=800)

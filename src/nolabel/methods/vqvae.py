"""VQ-VAE: vector-quantised autoencoder.

van den Oord et al., "Neural Discrete Representation Learning", 2017, arXiv 1711.00937.

The encoder gives each patch a vector z, which is replaced by the nearest of K learned codes e;
the decoder predicts the image from the codes alone. The gradient passes the replacement unchanged
(straight through), and with sg for "no gradient" and means over all numbers

    q    = z + sg(e_k - z),   k = argmin_j |z - e_j|                                     (eq. 1, 2)
    loss = (decoder(q) - x)^2 + |sg(z) - e_k|^2 + beta |z - sg(e_k)|^2                   (eq. 3)

The middle term moves the codes; with `ema` (appendix A.1) moving averages do it instead: with n_i
vectors at code i in a step,

    N_i <- g N_i + (1 - g) n_i,   m_i <- g m_i + (1 - g) sum of those z,   e_i <- m_i / N_i

where the N are first smoothed, (N_i + eps) / (sum N + K eps) * sum N with eps = 1e-5. `tokens` are
the ids of an image's codes, row by row, such as for BEiT.

Differs from the original:
  - encoder: any ViT or ResNet with its grid; decoder: a transformer that predicts the pixels of
    each patch, where the paper has convolutions in both;
  - the reconstruction is the squared error of normalised pixels, the other terms are means over
    numbers too (as the authors' code has it, which divides the first by the data's variance);
  - dead codes, used less than `revive` times an equal share, are replaced by random vectors of the
    step, so the first update initialises the codes from data (0 = the paper: never);
  - the averages are initially zero, which cancels in their ratio; unused codes do not change;
  - the averages include all micro-batches of an optimiser step and all ranks;
  - the prior over codes (a PixelCNN) is left out, as it is for sampling;
  - a ViT's class token gets gradient only through attention from the patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.backbones.decoder import PatchDecoder
from nolabel.backbones.vit import patch_grid
from nolabel.limits import BelowOne, Count, NotNegative, Several
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.methods.capabilities import Reconstructs, Tokenizes
from nolabel.nn.assignment import codes_in_use
from nolabel.nn.codebook import Codebook
from nolabel.nn.pixels import mean_colour_error
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan


class VQVAE(Method, Tokenizes, Reconstructs):
    """Vector-quantised autoencoder; a tokenizer of patches."""

    needs = frozenset({"patches"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """VQ-VAE's own options; codes, commitment and decay are the paper's."""

        codes: Several = 512  # K, size of the codebook
        code_dim: Count = 64  # width of a code
        commitment: NotNegative = 0.25  # beta, weight of the commitment loss
        ema: bool = True  # codes are moving averages; False: trained by the codebook loss
        decay: BelowOne = 0.99  # g of the moving averages
        revive: NotNegative = 0.03  # replace codes used less than this x an equal share; 0 = never
        decoder_dim: Count = 256  # width of the decoder
        decoder_depth: Count = 4  # blocks of the decoder
        decoder_heads: Count = 8  # attention heads of the decoder
        scale: tuple[float, float] = (0.5, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        self.backbone, self.patch = backbone, backbone.patch_size
        self.vocabulary = o.codes  # K
        grid = patch_grid(backbone.image_size, self.patch)
        self.to_code = nn.Linear(backbone.dim, o.code_dim)
        self.codebook = Codebook(o.codes, o.code_dim, ema=o.ema, decay=o.decay, revive=o.revive)
        self.from_code = nn.Linear(o.code_dim, o.decoder_dim)
        self.decoder = PatchDecoder(
            o.decoder_dim, o.decoder_depth, o.decoder_heads, grid,
            patch=self.patch, channels=backbone.channels,
        )  # fmt: skip

    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        return self.codebook.nearest(self.to_code(self.backbone.tokens(x).patches))

    def decode(self, q: Tensor) -> Tensor:
        """Quantised vectors [N, P, code_dim] to images [N, C, H, W]."""
        return self.decoder(self.from_code(q))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] reconstructed from their tokens."""
        return self.decode(self.codebook.codes[self.tokens(x)])

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return ViewPlan(views=(View(name="image", size=image_size, scale=options.scale, flip=0.5),))

    def step(self, batch: Batch, clock: Clock) -> Step:
        o = self.options
        x = batch.views["image"][0]  # [B, C, H, W]
        t = self.backbone.tokens(x)
        z = self.to_code(t.patches).float()  # [B, P, code_dim]
        ids = self.codebook.nearest(z)
        e = self.codebook.codes[ids]
        error = F.mse_loss(self.decode(z + (e - z).detach()), x.float())
        commitment = F.mse_loss(z, e.detach())
        loss = error + o.commitment * commitment
        if not o.ema:
            loss = loss + F.mse_loss(e, z.detach())
        self.codebook.observe(z, ids, clock.step)
        logs = {"error": error.detach(), "error_mean_colour": mean_colour_error(x)}
        logs |= {"commitment": commitment.detach(), **codes_in_use(ids, o.codes)}
        return Step(loss, logs, features=t.pooled.detach())

    def after_update(self, clock: Clock) -> None:
        self.codebook.update()

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """250,000 updates (25 epochs of ImageNet), batch 128."""
        batch = context.batch_size or 128
        optim = Optim(lr=2e-4, warmup_epochs=0, lr_end=2e-4, weight_decay=0.0)
        return Recipe(
            options=cls.Options(), optim=optim, batch_size=batch, epochs=25, steps=250_000
        )

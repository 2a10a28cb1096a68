"""Autoencoder: reconstruct the image from a few numbers.

Hinton & Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", 2006,
Science 313; skip connections: Ronneberger et al., "U-Net", 2015, arXiv 1505.04597.

The encoder f turns an image into its embedding, a linear map into a code of few numbers, and a
decoder g turns the code back into pixels:

    c    = W f(x)
    loss = mean over images and pixels of (g(c) - x)^2          x normalised

The code is a bottleneck: it must hold what explains most of the pixels.

With `skip` the decoder also receives the encoder's early features, the first of every resolution,
as in a U-Net. The reconstruction becomes far better and the embedding learns nothing, because the
pixels bypass it. The metric `code_use` shows it: the decoder runs again with the codes of other
images of the batch, and

    code_use = 1 - error / error with another image's code      1: all by the code; 0: not used

Differs from the original:
  - trained end to end, without the layer-wise pre-training of 2006;
  - any ViT or ResNet is the encoder, the decoder is convolutional and not the encoder's mirror;
  - images are randomly cropped and flipped;
  - a U-Net has no bottleneck vector; here it has, to show that it is not used;
  - both recipes are ours; only the code of 30 numbers of the paper's recipe is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel.backbones.base import Backbone, probe_layers
from nolabel.backbones.decoder import MapDecoder
from nolabel.backbones.vit import patch_grid
from nolabel.errors import UsageError
from nolabel.limits import Count
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.methods.capabilities import Reconstructs
from nolabel.nn.pixels import mean_colour_error
from nolabel.types import Batch, Clock, Optim, Step, Tokens
from nolabel.views.plan import View, ViewPlan

N_SHUFFLED = 32  # images of a batch that are decoded again for `code_use`


def early_maps(layers: list[Tokens]) -> dict[int, Tensor]:
    """The first features of each resolution {side: [N, D_i, side, side]}; not the last layer's."""
    maps: dict[int, Tensor] = {}
    for t in layers[:-1]:
        maps.setdefault(t.grid[0], t.patches.transpose(1, 2).unflatten(2, t.grid))
    return maps


class Autoencoder(Method, Reconstructs):
    """Autoencoder with a bottleneck, and with skip connections on request."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The autoencoder's own options."""

        code: Count = 64  # width of the bottleneck
        width: Count = 128  # channels of the decoder's first map, fewer after each upsampling
        skip: bool = False  # early features reach the decoder: good pixels, useless embedding
        scale: tuple[float, float] = (0.5, 1.0)  # area of the crop, as share of the image

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__(backbone, options)
        o = options
        self.backbone = backbone
        grid = patch_grid(backbone.image_size, backbone.patch_size)
        skips: dict[int, int] = {}
        if o.skip:
            if backbone.depth < 2:
                raise UsageError(
                    f"skip takes features from before the last layer; {backbone.name!r} has one "
                    "layer. Use a deeper backbone, or leave skip out."
                )
            maps = early_maps(probe_layers(backbone, backbone.depth))
            skips = {side: m.shape[1] for side, m in maps.items()}
        self.to_code = nn.Linear(backbone.dim, o.code)
        self.decoder = MapDecoder(
            o.code, backbone.channels, grid, backbone.patch_size, o.width, skips
        )

    def encode(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Embedding [N, D] of images [N, C, H, W], and with skip the `early_maps`."""
        layers = self.backbone.layers(x, self.backbone.depth if self.options.skip else 1)
        return layers[-1].pooled, early_maps(layers)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        return ViewPlan(views=(View(name="image", size=image_size, scale=options.scale, flip=0.5),))

    def step(self, batch: Batch, clock: Clock) -> Step:
        x = batch.views["image"][0]  # [B, C, H, W]
        pooled, maps = self.encode(x)
        code = self.to_code(pooled)
        pred = self.decoder(code, maps)
        loss = F.mse_loss(pred, x.float())
        with torch.no_grad():
            n = min(N_SHUFFLED, len(x))
            with_other_code = self.decoder(
                code.roll(1, 0)[:n], {side: m[:n] for side, m in maps.items()}
            )
            shuffled = F.mse_loss(with_other_code, x[:n].float())
            use = 1.0 - F.mse_loss(pred[:n], x[:n].float()) / shuffled
        logs = {
            "error_shuffled": shuffled,
            "code_use": use,
            "error_mean_colour": mean_colour_error(x),
        }
        return Step(loss, logs, features=pooled.detach())

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] reconstructed from their own codes."""
        pooled, maps = self.encode(x)
        return self.decoder(self.to_code(pooled), maps)

    @torch.no_grad()
    def swapped(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] decoded with the code of the image before; hardly differ with
        skip."""
        pooled, maps = self.encode(x)
        return self.decoder(self.to_code(pooled).roll(1, 0), maps)

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """The paper's code of 30 numbers; the optimiser is ours (it pre-trained with RBMs)."""
        batch = context.batch_size or max(min(128, context.images // 4), 1)
        optim = Optim(lr=2e-3, warmup_epochs=1, lr_end=0.0, weight_decay=0.01)
        return Recipe(options=cls.Options(code=30), optim=optim, batch_size=batch, epochs=100)

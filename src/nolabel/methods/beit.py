"""BEiT: masked prediction of visual tokens.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers", 2021, arXiv 2106.08254.

A frozen tokenizer gives each patch i of the unmasked image an id y_i of a vocabulary V. The encoder
sees the image with blocks of patches M (about 40 %) replaced by a mask token, and predicts their
ids:

    loss = -(1 / |M|) sum over i in M of  log softmax(W h_i + b)[y_i]

h_i are the encoder's tokens after its last norm; M are all hidden patches of the batch.

Differs from the original:
  - the tokenizer is one trained here (a run of vqvae or dvae), not DALL-E's;
  - it sees the encoder's own view, resized so that both grids agree; the official code crops one
    box twice from the picture, for the tokenizer with Lanczos at half the size;
  - the ViT has absolute positions and no relative position bias, and a key bias;
  - normalisation is ImageNet's or the run's, not 0.5;
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
from nolabel.limits import Count, NotNegative, Share
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.nn.frozen import Frozen
from nolabel.nn.masks import block_masks
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views.plan import View, ViewPlan


class BEiT(Method):
    """Masked prediction of visual tokens."""

    needs = frozenset({"mask"})
    inputs = frozenset({"tokenizer"})

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """BEiT's own options; defaults are the paper's for ViT-B/16."""

        teacher: str = ""  # the tokenizer: the folder of a run of vqvae or dvae
        mask_ratio: float = 0.383  # largest share of masked patches (BEiT: 75 of 196)
        smallest_block: Count = 16  # least area of a masked block, in patches
        layer_scale: NotNegative = 0.1  # initial LayerScale (L: 1e-5); 0 = no LayerScale
        drop_path: Share = 0.1  # stochastic depth
        scale: tuple[float, float] = (0.08, 1.0)  # area of the crop, as share of the image
        jitter: float = 0.4  # of brightness, contrast and saturation, with probability 1

    def __init__(self, backbone: Backbone, options: Options, *, tokenizer: Frozen):
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
        self.backbone, self.tokenizer = backbone, tokenizer
        self.mask_token = nn.Parameter(torch.empty(backbone.dim).normal_(std=0.02))
        self.head = nn.Linear(backbone.dim, tokenizer.module.vocabulary)  # W, b
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if o.layer_scale and isinstance(backbone, ViT):
            backbone.set_layer_scale(o.layer_scale)
        backbone.set_drop_path(o.drop_path)
        side = backbone.image_size
        self.targets(torch.zeros(1, backbone.channels, side, side))  # raises if the grids differ

    @staticmethod
    def init(backbone: Backbone) -> None:
        """As in the official code, but Xavier-uniform matrices in narrow ViTs."""
        if isinstance(backbone, ViT):
            init_like_beit(backbone.net)

    @classmethod
    def views(cls, options: Options, image_size: int) -> ViewPlan:
        o = options
        view = View(
            name="image", size=image_size, scale=o.scale, flip=0.5,
            jitter=(o.jitter, o.jitter, o.jitter, 0.0), jitter_p=1.0,
        )  # fmt: skip
        return ViewPlan(views=(view,))

    @torch.no_grad()
    def targets(self, x: Tensor) -> Tensor:
        """The tokenizer's ids int64 [B, P] of whole images, on the encoder's grid."""
        grid = (x.shape[-2] // self.backbone.patch_size, x.shape[-1] // self.backbone.patch_size)
        patch = self.tokenizer.module.patch
        with torch.autocast(x.device.type, enabled=False):  # bf16 would change ids
            image = self.tokenizer.prepare(x.float(), (grid[0] * patch, grid[1] * patch))
            ids = self.tokenizer.module.tokens(image)
        if ids.shape != (len(x), grid[0] * grid[1]):
            raise UsageError(
                f"The tokenizer gives {ids.shape[-1]} tokens an image, the encoder has "
                f"{grid[0]} x {grid[1]} patches. Use a tokenizer of one token a patch."
            )
        return ids

    def draw_masks(self, x: Tensor) -> Tensor:
        """Blocks of hidden patches, bool [B, P]."""
        o, side = self.options, x.shape[-1] // self.backbone.patch_size
        counts = np.full(len(x), round(o.mask_ratio * side * side))
        return block_masks(counts, (side, side), smallest=o.smallest_block).to(x.device)

    def step(self, batch: Batch, clock: Clock) -> Step:
        x = batch.views["image"][0]  # [B, C, H, W]
        ids, mask = self.targets(x), self.draw_masks(x)
        out = self.backbone.tokens(x, mask=mask, mask_token=self.mask_token)
        logits = self.head(out.patches[mask]).float()  # [hidden, V]
        total = F.cross_entropy(logits, ids[mask], reduction="sum")
        loss = distributed.ratio(total, mask.sum())  # over the hidden patches of all processes
        logs = {
            "hidden": mask.float().mean(),
            "token_accuracy": (logits.argmax(-1) == ids[mask]).float().mean(),
            "tokens_used": ids.unique().numel(),
        }
        return Step(loss, logs, features=out.pooled.detach())

    @property
    def encoder(self) -> Backbone:
        return self.backbone

    @classmethod
    def paper_recipe(cls, context: RecipeContext) -> Recipe:
        """ViT-B/16, 800 epochs of ImageNet-1k, batch 2048."""
        batch = context.batch_size or 2048
        optim = Optim(
            lr=1.5e-3, warmup_epochs=10, lr_end=1e-5, weight_decay=0.05, clip=3.0,
            undecayed=("cls_token", "pos_embed"), decayed=("mask_token",),
        )  # fmt: skip
        return Recipe(options=cls.Options(), optim=optim, batch_size=batch, epochs=800)

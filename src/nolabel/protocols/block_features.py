"""Features of the last blocks of a network, of centre crops or random crops, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nolabel.data.progress import progress_bar
from nolabel.data.readable import Readable, leave_out_unreadable
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Prepare, chunks, encoder_input
from nolabel.errors import DataError, UsageError
from nolabel.views import FastViews
from nolabel.views.plan import View, ViewPlan

POOLS = ("auto", "class", "class+mean", "mean")


@dataclass(frozen=True)
class BlockFeatures:
    """Features of a set.

    Attributes:
        pooled: float32 [M, D], the encoder's embedding.
        tokens: float32 [M, n, D], class tokens of the last n blocks after the final norm, in the
            order of the blocks; without class token, means of the patches.
        patches: float32 [M, D], mean of the last block's patch tokens.
        keys: int64 [M], indices of the images in their source; each crop has its image's.
        skipped: (path, reason) of each image that could not be read.
    """

    pooled: Tensor
    tokens: Tensor
    patches: Tensor
    keys: Tensor
    skipped: tuple[tuple[str, str], ...]

    def features(self, blocks: int, pool: str) -> Tensor:
        """Features float32 [M, F] for a classifier.

        Args:
            blocks: number of last blocks whose class tokens are concatenated.
            pool: "class" for these; "class+mean" appends the mean patch of the last block; "mean"
                is this alone; "auto" is the encoder's embedding for one block, else "class".
        """
        if pool == "auto":
            return self.pooled if blocks == 1 else self.tokens[:, -blocks:].flatten(1)
        if pool == "mean":
            return self.patches
        parts = [self.tokens[:, -blocks:].flatten(1)]
        return torch.cat(parts + [self.patches] * (pool == "class+mean"), 1)


def extract_block_features(
    encoder: Encoder, source: Source, *, blocks: int, crops: int, seed: int, batch_size: int
) -> BlockFeatures:
    """Computes features of the last blocks for every image of a source.

    Args:
        encoder: the encoder, used on its own device.
        source: the images; those that cannot be read are left out.
        blocks: number of last blocks.
        crops: random crops (8 % to 100 % of the area, flipped with probability 1/2) of each image;
            0 takes the centre crop.
        seed: seed of the crops.
        batch_size: images in a forward pass.

    Raises:
        UsageError: more blocks than there are, or blocks of different widths.
        DataError: no image could be read.
    """
    b = encoder.backbone
    if not 1 <= blocks <= b.depth:
        raise UsageError(f"blocks must be 1 to {b.depth} for {encoder.name!r}, got {blocks}.")
    plan = ViewPlan(views=(View(name="image", size=encoder.size),), mean=encoder.mean,
                    std=encoder.std)  # fmt: skip
    views = FastViews(plan, seed, device=encoder.device) if crops else None
    pooled: list[Tensor] = []
    tokens: list[Tensor] = []
    patches: list[Tensor] = []
    keys: list[np.ndarray] = []
    # A random crop depends on the place of its image among those that can be read.
    readable, skipped = leave_out_unreadable(source) if crops else (source, ())
    total = len(readable) * max(crops, 1)
    with progress_bar(f"{encoder.name} on {source.name}", total, True) as advance:
        for epoch in range(max(crops, 1)):
            prepare = encoder_input(encoder) if views is None else _crops(views, epoch)
            for chunk in chunks(readable, batch_size, prepare):
                if chunk.x is not None:
                    with encoder.evaluating():
                        t = b.layers(chunk.x, blocks)
                        if len({p.pooled.shape[1] for p in t}) > 1:
                            raise UsageError(
                                f"The last {blocks} layers of {encoder.name!r} have different "
                                "widths; a ViT has blocks of one width. Use --blocks 1."
                            )
                        class_tokens = [
                            p.patches.float().mean(1) if p.prefix is None or not p.prefix.shape[1]
                            else p.prefix[:, 0] for p in t
                        ]  # fmt: skip
                        tokens.append(torch.stack(class_tokens, 1).float().cpu())
                        patches.append(t[-1].patches.float().mean(1).cpu())
                        pooled.append(t[-1].pooled.float().cpu())
                    keys.append(np.asarray(chunk.keys))
                skipped = (*skipped, *chunk.skipped)
                advance(len(chunk.keys) + len(chunk.skipped))
    if not keys:
        raise DataError(f"{source.name!r} has no image that can be read.")
    indices = np.concatenate(keys)
    if isinstance(readable, Readable):
        indices = readable.indices[indices]
    return BlockFeatures(
        torch.cat(pooled), torch.cat(tokens), torch.cat(patches), torch.from_numpy(indices),
        skipped,
    )  # fmt: skip


def _crops(views: FastViews, epoch: int) -> Prepare:
    """Prepares the random crop of each image in an epoch, float32 [B, C, S, S]."""
    return lambda images, keys: views(images, keys, epoch)["image"][0]

"""Similarity of a ViT's position embeddings: the cosine of each with all others.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv 2010.11929, figure 7.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch.nn.functional as F
from scipy.stats import spearmanr

from nolabel.backbones.beit import BEiT
from nolabel.backbones.vit import ViT
from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, heat, sheet
from nolabel.pictures.picture import Picture


def positions(
    encoder: Encoder,
    images: object = None,
    *,
    across: Annotated[int, Help("patches shown in each direction, at most")] = 7,
) -> Pictures:
    """For each of some patches a map of the similarity of its position embedding to all others.

    Args:
        encoder: a ViT with a position embedding.
        images: not used.

    Raises:
        UsageError: no position embedding, or across below 1.
    """
    if across < 1:
        raise UsageError(f"across must be at least 1, got {across}.")
    b = encoder.backbone
    if not isinstance(b, ViT | BEiT) or b.net.pos_embed is None:
        raise UsageError(f"{encoder.name!r} has no position embedding. Use a ViT.")
    h, w = b.net.patch_embed.grid_size
    z = b.net.pos_embed.detach().float().cpu()[0, -h * w :]
    cos = (F.normalize(z, dim=1) @ F.normalize(z, dim=1).T).numpy()
    maps = cos.reshape(h, w, h, w)
    rows = [
        [heat(maps[y, x]) for x in np.unique(np.linspace(0, w - 1, min(across, w)).astype(int))]
        for y in np.unique(np.linspace(0, h - 1, min(across, h)).astype(int))
    ]
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    distance = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
    pairs = np.triu_indices(h * w, 1)
    numbers = {"near_is_alike": float(-spearmanr(distance[pairs], cos[pairs])[0])}
    caption = (
        f"Cosine similarity of the position embeddings of {encoder.name}; each map shows one patch "
        f"of the {h} x {w} grid and all others. Rank correlation of similarity with nearness "
        f"{numbers['near_is_alike']:.2f} (1: nearer patches are always more similar; 0: the "
        "embeddings carry no position)."
    )
    return Pictures(
        [Picture(name="positions", image=sheet(rows, side=64), caption=caption,
                 data={"cosine": maps}, numbers=numbers)]
    )  # fmt: skip

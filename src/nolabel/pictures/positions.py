"""What a ViT knows of places: the cosine of each patch's position embedding with all others.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, figure 7.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from scipy.stats import spearmanr

from nolabel.backbones.beit import BEiT
from nolabel.backbones.vit import ViT
from nolabel.encoders import Encoder
from nolabel.errors import UsageError
from nolabel.pictures._tiles import Pictures, heat, sheet
from nolabel.pictures.picture import Picture


def positions(encoder: Encoder, images: object = None, *, across: int = 7) -> Pictures:
    """A map for each of some patches: how alike its position is to every other.

    Args:
        encoder: a ViT with a position embedding.
        images: not used.
        across: patches shown in each direction, at most.

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
    where = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    away = np.linalg.norm(where[:, None] - where[None], axis=-1)
    pairs = np.triu_indices(h * w, 1)
    numbers = {"near_is_alike": float(-spearmanr(away[pairs], cos[pairs])[0])}
    caption = (
        f"Cosine of position embeddings of {encoder.name}, one map for each of some patches of the "
        f"{h} x {w} grid. Alikeness falls with distance by a rank correlation of "
        f"{numbers['near_is_alike']:.2f} (0 where places mean nothing)."
    )
    return Pictures(
        [Picture(name="positions", image=sheet(rows, side=64), caption=caption,
                 data={"cosine": maps}, numbers=numbers)]
    )  # fmt: skip

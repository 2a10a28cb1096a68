"""Mean attention distance: how far apart query and key patches are, for each head and layer.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, figure 11; Raghu et al., "Do Vision
Transformers See Like Convolutional Neural Networks?", 2021.
"""

from __future__ import annotations

import numpy as np
import torch

from nolabel.backbones.base import require
from nolabel.encoders import Encoder
from nolabel.pictures._dense import ImagesOrSamples, images_of
from nolabel.pictures._tiles import Pictures, chart
from nolabel.pictures.picture import Picture


def attention_distance(encoder: Encoder, images: ImagesOrSamples) -> Pictures:
    """Mean attention distance in pixels and entropy of every head of every layer.

    Args:
        encoder: one whose backbone has attention.
        images: anything `Encoder.prepare` takes, or Samples.

    Raises:
        UsageError: the backbone has no attention.
    """
    b = encoder.backbone
    require(b, ["attention"], "Attention distance")
    x, cell = encoder.prepare(images_of(images)), b.patch_size
    h, w = (side // cell for side in x.shape[-2:])
    grid = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    pixels_apart = np.linalg.norm(grid[:, None] - grid[None], axis=-1) * cell  # [P, P]
    distances, entropies = [], []
    for layer in range(b.depth):
        with encoder.evaluating():
            a = torch.cat([b.attention(batch, layer)[:, :, -h * w :, -h * w :].float().cpu()
                           for batch in x.split(4)]).double().numpy()  # fmt: skip
        a = a / np.maximum(a.sum(-1, keepdims=True), 1e-12)
        distances.append((a * pixels_apart).sum(-1).mean((0, 2)))
        entropy = -(a * np.log(np.maximum(a, 1e-12))).sum(-1) / np.log(max(h * w, 2))
        entropies.append(entropy.mean((0, 2)))
    distance, even = np.stack(distances), float(pixels_apart.mean())  # [layers, heads]
    layers = np.repeat(np.arange(b.depth), distance.shape[1])
    image = chart(
        [
            ("heads", layers, distance.ravel(), "o"),
            ("mean", np.arange(b.depth), distance.mean(1), "-"),
            ("uniform attention", np.arange(b.depth), np.full(b.depth, even), "--"),
        ],
        "layer",
        "distance in pixels",
    )
    numbers = {
        "first_layer": float(distance[0].mean()), "last_layer": float(distance[-1].mean()),
        "even": even, "entropy_share_last": float(entropies[-1].mean()),
    }  # fmt: skip
    caption = (
        f"Mean attention distance of each head of {encoder.name}: {numbers['first_layer']:.1f} px "
        f"in the first layer, {numbers['last_layer']:.1f} px in the last (uniform attention "
        f"{even:.1f} px). Heads far below it are local, heads near it are global. Entropy in the "
        f"last layer {numbers['entropy_share_last']:.0%} of that of uniform attention."
    )
    return Pictures(
        [Picture(name="attention-distance", image=image, caption=caption, numbers=numbers,
                 data={"distance": distance, "entropy_share": np.stack(entropies)})]
    )  # fmt: skip

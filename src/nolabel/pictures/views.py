"""The augmented crops that a view plan makes of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from nolabel.data.sources._bands import to_rgb8
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._options import Help
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture
from nolabel.views import FastViews, ViewPlan


def views(
    plan: ViewPlan,
    images: Sequence[np.ndarray],
    *,
    seed: Annotated[int, Help("seed of the augmentation")] = 0,
    epoch: Annotated[int, Help("epoch whose random crops are shown")] = 0,
) -> Pictures:
    """One row for each image: the image, then every crop of the plan.

    Args:
        plan: the augmentation.
        images: uint8 or uint16 [H, W, C] each.
    """
    keys = np.arange(len(images))
    batch = FastViews(plan, seed, device="cpu")(list(images), keys, epoch)
    columns, titles = [], ["image"]
    for name, crops in batch.items():
        for i, crop in enumerate(crops):
            columns.append(to_pixels(crop.numpy(), plan.mean, plan.std))
            titles.append(f"{name} {i}, {crop.shape[-1]} px")
    rows = [[to_rgb8(image), *(c[i] for c in columns)] for i, image in enumerate(images)]
    caption = (
        "Each image, and the random crops that a network of this run is trained on. "
        + "; ".join(plan.describe())
        + "."
    )
    return Pictures([Picture(name="views", image=sheet(rows, titles, 112), caption=caption)])

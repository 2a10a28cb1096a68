"""What a view plan makes of each image: the best look at one's augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nolabel.data.sources._bands import to_rgb8
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture
from nolabel.views import FastViews, ViewPlan


def views(
    plan: ViewPlan, images: Sequence[np.ndarray], *, seed: int = 0, epoch: int = 0
) -> Pictures:
    """One row an image: the image, then every crop of the plan.

    Args:
        images: uint8 or uint16 [H, W, C] each.
        seed: of the augmentation.
        epoch: which epoch's draws.
    """
    keys = np.arange(len(images))
    made = FastViews(plan, seed, device="cpu")(list(images), keys, epoch)
    columns, titles = [], ["image"]
    for name, crops in made.items():
        for i, crop in enumerate(crops):
            columns.append(to_pixels(crop.numpy(), plan.mean, plan.std))
            titles.append(f"{name} {i}, {crop.shape[-1]} px")
    rows = [[to_rgb8(image), *(c[i] for c in columns)] for i, image in enumerate(images)]
    return Pictures(
        [Picture(name="views", image=sheet(rows, titles, 112), caption=" ".join(plan.describe()))]
    )

"""The augmented crops that a view plan makes of each image, and what each operation destroys."""

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
from nolabel.views.plan_file import to_yaml
from nolabel.views.suitability import (
    MOST_DETECTED,
    MOST_MOVED,
    USUAL,
    Operations,
    changed,
    operation,
)
from nolabel.views.suitability import turned as turned_images

SHOWN = 4  # images of which the operations are drawn, at most
SIDE = 112  # pixels


def views(
    plan: ViewPlan,
    images: Sequence[np.ndarray],
    operations: Operations | None = None,
    samples: np.ndarray | None = None,
    *,
    seed: Annotated[int, Help("seed of the augmentation")] = 0,
    epoch: Annotated[int, Help("epoch whose random crops are shown")] = 0,
) -> Pictures:
    """One row for each image: the image, then every crop of the plan.

    Args:
        plan: the augmentation; also written as views.yaml, for `--views`.
        images: uint8 or uint16 [H, W, C] each.
        operations: what each operation does to images like these; None: not drawn.
        samples: the images on which it was measured, uint8 [N, S, S, C].
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
    made = [
        Picture(
            name="views", image=sheet(rows, titles, SIDE), caption=caption,
            texts={"views.yaml": to_yaml(plan)},
        )
    ]  # fmt: skip
    if operations is not None and samples is not None:
        made.append(_operations(operations, samples))
    return Pictures(made)


def _operations(found: Operations, samples: np.ndarray) -> Picture:
    """Each image beside what each operation at its usual strength makes of it, with the numbers."""
    index = np.linspace(0, len(samples) - 1, min(SHOWN, len(samples))).astype(int)
    images = np.ascontiguousarray(samples[index])
    columns: list[Sequence[np.ndarray]] = [to_rgb8_all(images)]
    titles, numbers = ["image"], {}
    for name, detected in found.detected.items():
        columns.append(to_rgb8_all(turned_images(images, name)))
        titles.append(f"{name.replace('_', ' ')} {detected:.2f}")
        numbers[f"{name}_detected"] = detected
    for name, moved in found.moved.items():
        pixels = changed(images, operation(name, USUAL[name]))
        columns.append(list(to_pixels(pixels, (0.0,) * pixels.shape[1], (1.0,) * pixels.shape[1])))
        titles.append(f"{name} {moved:.2f}")
        numbers |= {f"{name}_moved": moved, f"{name}_strength": found.strength[name]}
    rows = [[c[i] for c in columns] for i in range(len(images))]
    lost = [n for n, s in found.strength.items() if s < 1]
    caption = (
        f"Each image beside what each operation makes of it, measured on {found.images} images. "
        "Flips and turns: accuracy of detecting changed images (chance is 0.5; up "
        f"to {MOST_DETECTED:g} they are tolerated). The others, at the usual strength: how far "
        "a changed image is from its original, over how far it is from other images (1: what the "
        f"images differ by is destroyed; above {MOST_MOVED:g} the automatic recipe is weaker). "
        + (f"Reduced here: {', '.join(lost)}." if lost else "None is reduced here.")
    )
    return Picture(
        name="operations", image=sheet(rows, titles, SIDE), caption=caption, numbers=numbers
    )


def to_rgb8_all(images: np.ndarray) -> list[np.ndarray]:
    """Each of the images as uint8 [H, W, 3]."""
    return [to_rgb8(image) for image in images]

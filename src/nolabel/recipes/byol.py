"""BYOL's automatic recipe."""

from __future__ import annotations

import dataclasses

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.byol import BYOL
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    colour_jitter,
    grey_probability,
    is_small,
)


def automatic(method: type[BYOL], context: RecipeContext) -> Recipe:
    """Small heads, and a lower EMA momentum of the target for short runs.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      29.5 ± 2.2  (20.5)
        resnet_nano  fashion-mnist  76.6 ± 0.5  (75.2)
        vit_pico     creatures      23.7 ± 0.3  (18.8)
        vit_pico     fashion-mnist  58.9 ± 1.6  (56.8)
    """
    small = is_small(context)
    options = method.Options(
        hidden=512, projection=128,
        projection_norm=small,  # without it, the effective rank stays low for hundreds of steps
        target_momentum=0.9 if small else 0.97,  # short runs need a faster EMA
        scale=(0.15, 1.0) if small else (0.2, 1.0),
        jitter=colour_jitter(context, (0.4, 0.4, 0.2, 0.1)),
        grey=grey_probability(context),
        blur=(0.0, 0.0) if small else (1.0, 0.1),
        solarise=(0.0, 0.0) if small else (0.0, 0.2),
        blur_sigma=blur_sigma(context),
    )  # fmt: skip
    optim = adamw(context)
    if small:
        optim = dataclasses.replace(optim, lr=3e-3)
    batch = batch_size(context, 64 if small else 256, least=2)
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=200)

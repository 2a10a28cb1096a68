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
    ema_momentum,
    grey_probability,
    is_brief,
    is_small,
    run_steps,
)

EPOCHS = 200


def automatic(method: type[BYOL], context: RecipeContext) -> Recipe:
    """Small heads, and a lower EMA momentum of the target for short runs.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      29.5 ± 2.2  (20.5)
        resnet_nano  fashion-mnist  76.6 ± 0.5  (75.2)
        vit_pico     creatures      23.7 ± 0.3  (18.8)
        vit_pico     fashion-mnist  58.9 ± 1.6  (56.8)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 64 if brief else 256, least=2)
    options = method.Options(
        hidden=512 if brief else 4096, projection=128 if brief else 256,
        projection_norm=brief,  # in hundreds of steps few directions are learnt without
        target_momentum=ema_momentum(run_steps(context, batch, EPOCHS), 0.45, least=10.0),
        scale=(0.15, 1.0) if small else (0.2, 1.0),
        jitter=colour_jitter(context, (0.4, 0.4, 0.2, 0.1)),
        grey=grey_probability(context),
        blur=(0.0, 0.0) if small else (1.0, 0.1),
        solarise=(0.0, 0.0) if small else (0.0, 0.2),
        blur_sigma=blur_sigma(context),
    )  # fmt: skip
    optim = adamw(context, batch)
    if brief:
        optim = dataclasses.replace(optim, lr=3e-3)
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=EPOCHS)

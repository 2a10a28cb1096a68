"""MoCo v3's automatic recipe."""

from __future__ import annotations

import dataclasses

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.mocov3 import MoCoV3
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


def automatic(method: type[MoCoV3], context: RecipeContext) -> Recipe:
    """Small heads, and a faster EMA of the key encoder.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      29.6 ± 2.4  (20.5)
        resnet_nano  fashion-mnist  77.6 ± 0.3  (75.2)
        vit_pico     creatures      24.4 ± 0.5  (23.1)
        vit_pico     fashion-mnist  67.7 ± 0.2  (59.8)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 256, least=2)
    options = method.Options(
        hidden=512 if brief else 4096, projection=128 if brief else 256,
        key_momentum=ema_momentum(run_steps(context, batch, EPOCHS), 0.5),
        scale=(0.3, 1.0) if small else (0.2, 1.0),
        jitter=colour_jitter(context, (0.4, 0.4, 0.2, 0.1)),
        grey=grey_probability(context),
        blur=(0.0, 0.0) if small else (1.0, 0.1),
        solarise=(0.0, 0.0) if small else (0.0, 0.2),
        blur_sigma=blur_sigma(context),
    )  # fmt: skip
    optim = adamw(context, batch)
    if not brief and not context.conv:
        optim = dataclasses.replace(optim, lr=1.5e-4 * batch / 256)  # the paper's, for stability
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=EPOCHS)

"""SwAV's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.swav import SwAV
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    colour_jitter,
    grey_probability,
    is_small,
    local_size,
)


def automatic(method: type[SwAV], context: RecipeContext) -> Recipe:
    """Few prototypes, frozen for fewer steps, and two local crops for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      25.2 ± 2.0  (20.5)
        resnet_nano  fashion-mnist  73.5 ± 0.3  (75.2)  below random
        vit_pico     creatures      24.0 ± 0.8  (18.8)
        vit_pico     fashion-mnist  63.5 ± 0.9  (56.8)
    """
    small = is_small(context)
    options = method.Options(
        prototypes=256 if small else 1000,
        hidden=512,
        freeze_prototypes=50,
        local_crops=2 if small else 6,
        local_size=local_size(context),
        global_scale=(0.3, 1.0) if small else (0.14, 1.0),
        local_scale=(0.1, 0.4) if small else (0.05, 0.14),
        jitter=colour_jitter(context, (0.8, 0.8, 0.8, 0.2)),
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    batch = batch_size(context, 128, least=2)
    return Recipe(options=options, optim=adamw(context), batch_size=batch, epochs=200)

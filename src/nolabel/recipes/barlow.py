"""Barlow Twins' automatic recipe."""

from __future__ import annotations

from nolabel.methods.barlow import BarlowTwins
from nolabel.methods.base import Recipe, RecipeContext
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    colour_jitter,
    grey_probability,
    is_brief,
    is_small,
)


def automatic(method: type[BarlowTwins], context: RecipeContext) -> Recipe:
    """AdamW, a narrow projector; larger crops and stronger colour jitter for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      42.4 ± 0.8  (20.5)
        resnet_nano  fashion-mnist  77.7 ± 0.8  (75.2)
        vit_pico     creatures      23.9 ± 0.3  (18.8)
        vit_pico     fashion-mnist  65.6 ± 0.7  (56.8)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 128 if brief else 256, least=2)
    options = method.Options(
        hidden=512 if brief else 2048, projection=512 if brief else 2048,
        scale=(0.3, 1.0) if small else (0.2, 1.0),
        jitter=colour_jitter(context, (0.4, 0.4, 0.2, 0.1)),
        grey=grey_probability(context),
        blur=(0.0, 0.0) if small else (1.0, 0.1),
        solarise=(0.0, 0.0) if small else (0.0, 0.2),
        blur_sigma=blur_sigma(context),
    )  # fmt: skip
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=200)

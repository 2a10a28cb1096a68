"""The triplet loss's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.triplet import Triplet
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    colour_jitter,
    grey_probability,
    is_brief,
    is_small,
)


def automatic(method: type[Triplet], context: RecipeContext) -> Recipe:
    """A wider margin, a narrow projector, and a stronger hue jitter for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      46.3 ± 1.3  (20.5)
        resnet_nano  fashion-mnist  78.4 ± 0.5  (75.2)
        vit_pico     creatures      27.2 ± 1.3  (18.8)
        vit_pico     fashion-mnist  66.6 ± 0.5  (56.8)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 256, least=2)
    options = method.Options(
        margin=0.3,
        hidden=512 if brief else 2048,
        scale=(0.3, 1.0) if small else (0.2, 1.0),
        jitter=colour_jitter(context, (0.4, 0.4, 0.4, 0.1)),
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=200)

"""OBoW's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.obow import OBoW
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    colour_jitter,
    grey_probability,
    is_small,
    local_size,
)


def automatic(method: type[OBoW], context: RecipeContext) -> Recipe:
    """Fewer words, grey views for the teacher, and a `kappa` for small networks.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      28.8 ± 1.2  (20.5)
        resnet_nano  fashion-mnist  75.4 ± 0.8  (75.2)
        vit_pico     creatures      23.2 ± 1.6  (18.8)
        vit_pico     fashion-mnist  61.2 ± 1.4  (56.8)
    """
    small = is_small(context)
    options = method.Options(
        words=512 if small else 2048,
        levels=3 if small and context.conv else 2,  # the last feature maps have few positions
        spread_momentum=0.9 if small else 0.99,
        # The scale of a small network's features is not ResNet-50's.
        kappa=1.0 if small else 8.0,
        teacher_momentum=0.97,  # short runs need a faster EMA
        global_size=context.image_size if small else context.round_to_patches(160),
        local_size=local_size(context),
        local_crops=2 if small else 5,
        global_scale=(0.3, 1.0) if small else (0.08, 0.6),
        local_scale=(0.1, 0.4) if small else (0.08, 0.14),
        jitter=colour_jitter(context, (0.4, 0.4, 0.4, 0.1)),
        # Colour is a shortcut on small images, so words must not depend on it.
        teacher_grey=1.0 if small else 0.0,
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    batch = batch_size(context, 64 if small else 128, least=2)
    return Recipe(options=options, optim=adamw(context), batch_size=batch, epochs=200)

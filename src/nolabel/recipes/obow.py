"""OBoW's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.obow import OBoW
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    colour_jitter,
    ema_momentum,
    grey_probability,
    is_brief,
    is_small,
    local_size,
    run_steps,
)

EPOCHS = 200


def automatic(method: type[OBoW], context: RecipeContext) -> Recipe:
    """Fewer words, grey views for the teacher, and a `kappa` for small networks.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      28.8 ± 1.2  (20.5)
        resnet_nano  fashion-mnist  75.4 ± 0.8  (75.2)
        vit_pico     creatures      23.2 ± 1.6  (18.8)
        vit_pico     fashion-mnist  61.2 ± 1.4  (56.8)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 64 if brief else 128, least=2)
    options = method.Options(
        words=512 if brief else 2048,
        levels=3 if brief and context.conv else 2,  # the last maps have few positions
        spread_momentum=0.9 if brief else 0.99,
        # The scale of a small network's features is not ResNet-50's.
        kappa=1.0 if brief else 8.0,
        teacher_momentum=ema_momentum(run_steps(context, batch, EPOCHS), 0.5),
        global_size=context.image_size if small else context.round_to_patches(160),
        local_size=local_size(context),
        local_crops=2 if brief else 5,
        global_scale=(0.3, 1.0) if small else (0.08, 0.6),
        local_scale=(0.1, 0.4) if small else (0.08, 0.14),
        jitter=colour_jitter(context, (0.4, 0.4, 0.4, 0.1)),
        # Colour is a shortcut on small images, so words must not depend on it.
        teacher_grey=1.0 if small else 0.0,
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=EPOCHS)

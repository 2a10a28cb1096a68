"""MoCo v2's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.mocov2 import MoCoV2
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


def automatic(method: type[MoCoV2], context: RecipeContext) -> Recipe:
    """A queue of at most a quarter of the data, and a faster EMA of the key encoder.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      26.9 ± 1.5  (20.5)
        resnet_nano  fashion-mnist  75.8 ± 0.4  (75.2)
        vit_pico     creatures      20.9 ± 2.0  (18.8)
        vit_pico     fashion-mnist  62.6 ± 1.1  (56.8)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 256, least=2)
    options = method.Options(
        queue=max(min(4096, context.images // 4), 2),
        key_momentum=ema_momentum(run_steps(context, batch, EPOCHS), 1.0),
        hidden=512 if brief else 2048,
        scale=(0.3, 1.0) if small else (0.2, 1.0),
        jitter=colour_jitter(context, (0.4, 0.4, 0.4, 0.1)),
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=EPOCHS)

"""SwAV's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.swav import SwAV
from nolabel.recipes.choices import adamw, batch_size, is_brief, run_steps
from nolabel.recipes.families import multi_crop_clusters

EPOCHS = 200


def automatic(method: type[SwAV], context: RecipeContext) -> Recipe:
    """Few prototypes, frozen for fewer steps, and two local crops for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      25.2 ± 2.0  (20.5)
        resnet_nano  fashion-mnist  73.5 ± 0.3  (75.2)  below random
        vit_pico     creatures      24.0 ± 0.8  (18.8)
        vit_pico     fashion-mnist  63.5 ± 0.9  (56.8)
    """
    brief = is_brief(context)
    batch = batch_size(context, 128, least=2)
    options = method.Options(
        prototypes=256 if brief else 1000,
        freeze_prototypes=min(50 if brief else 313, run_steps(context, batch, EPOCHS) // 10),
        **multi_crop_clusters(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=EPOCHS)

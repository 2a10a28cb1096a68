"""SwAV's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.swav import SwAV
from nolabel.recipes.choices import adamw, batch_size, first_epochs, is_brief, run_steps
from nolabel.recipes.families import multi_crop_clusters

EPOCHS = 200
# Sinkhorn-Knopp gives each prototype an equal share of the rows, so with many more prototypes than
# rows it spreads a row over wrong ones: of the mass of 128 rows, 12 % is on the right one of 1000
# prototypes, 41 % of 256 and 67 % of 94; officially 68 %.
ROWS_OF_A_PROTOTYPE = 4096 / 3000  # the paper's batch and prototypes


def automatic(method: type[SwAV], context: RecipeContext) -> Recipe:
    """As many prototypes as the rows of an assignment allow, frozen for fewer steps, and two local
    crops for small images. Other runs have a queue, so that 1000 prototypes get enough rows.

    Measured with 256 prototypes (benchmarks/results/methods.json; `nolabel.recipes` says
    how), k-NN in per cent, the untrained network in brackets:

        resnet_nano  creatures      25.2 ± 2.0  (20.5)
        resnet_nano  fashion-mnist  73.5 ± 0.3  (75.2)  below random
        vit_pico     creatures      24.0 ± 0.8  (18.8)
        vit_pico     fashion-mnist  63.5 ± 0.9  (56.8)
    """
    brief = is_brief(context)
    batch = batch_size(context, 128, least=2)
    queue = 0 if brief else min(10 * batch, context.images // 2)
    most = round((batch + queue) / ROWS_OF_A_PROTOTYPE)
    options = method.Options(
        prototypes=max(min(1000, most), 2),
        queue=queue,
        queue_from_epoch=first_epochs(context, batch, EPOCHS, paper=15.0, share=0.04),
        freeze_prototypes=min(50 if brief else 313, run_steps(context, batch, EPOCHS) // 10),
        **multi_crop_clusters(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=EPOCHS)

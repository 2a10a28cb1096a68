"""DINOv2's automatic recipe."""

from __future__ import annotations

import dataclasses

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.dinov2 import DINOv2
from nolabel.recipes.choices import batch_size, is_brief, is_small
from nolabel.recipes.families import (
    EPOCHS,
    self_distillation,
    self_distillation_optim,
    temperature_warmup,
)


def automatic(method: type[DINOv2], context: RecipeContext) -> Recipe:
    """DINO's small heads and faster EMA, also for the patch loss; no LayerScale.

    Targets are centred, as in the official recipe for batches of 2048 on ImageNet-1k: at small
    batches Sinkhorn-Knopp would have far more prototypes than rows, and spread each row over wrong
    ones (of the mass of 256 rows, 1.5 % is on the right one of 16,384).

    Measured with Sinkhorn-Knopp (benchmarks/results/methods.json; `nolabel.recipes` says
    how), k-NN in per cent, the untrained network in brackets:

        vit_pico     creatures      25.4 ± 2.0  (19.5)
        vit_pico     fashion-mnist  60.3 ± 0.5  (56.2)
    """
    brief = is_brief(context)
    batch = batch_size(context, 64 if brief else 128)
    options = method.Options(
        centring="centre",
        **self_distillation(context, batch, of_224=98, drop_path=0.4),
        **temperature_warmup(context, batch),
    )
    if is_small(context):
        options = dataclasses.replace(options, global_scale=(0.4, 1.0))
    if brief:
        options = dataclasses.replace(
            options,
            prototypes=1024,
            patch_prototypes=512,
            patch_bottleneck=64,
            layer_scale=0.0,
            teacher_temperature=0.04,
        )
    else:
        options = dataclasses.replace(options, prototypes=16384, patch_prototypes=8192)
    lr = 1e-3 * (batch / 1024) ** 0.5
    optim = self_distillation_optim(context, lr, "module")
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=EPOCHS)

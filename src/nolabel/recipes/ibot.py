"""iBOT's automatic recipe."""

from __future__ import annotations

import dataclasses

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.ibot import IBOT
from nolabel.recipes.choices import batch_size, is_brief, is_small
from nolabel.recipes.families import (
    EPOCHS,
    self_distillation,
    self_distillation_optim,
    temperature_warmup,
)


def automatic(method: type[IBOT], context: RecipeContext) -> Recipe:
    """DINO's small heads and faster EMA; a separate patch head, and a small weight of its loss.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        vit_pico     creatures      21.7 ± 1.8  (19.5)
        vit_pico     fashion-mnist  63.4 ± 1.5  (56.2)
    """
    brief = is_brief(context)
    batch = batch_size(context, 64 if brief else 128)
    options = method.Options(
        **self_distillation(context, batch), **temperature_warmup(context, batch)
    )
    if is_small(context):
        options = dataclasses.replace(options, global_scale=(0.4, 1.0))
    if brief:
        options = dataclasses.replace(
            options, prototypes=1024, patch_prototypes=512, shared_head=False,
            teacher_temperature=0.04,
            patch_weight=0.2,  # else the pixels of small patches are learnt first and for long
        )  # fmt: skip
    else:
        options = dataclasses.replace(options, local_crops=8)
    optim = self_distillation_optim(context, 5e-4 * batch / 256, "tensor")
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=EPOCHS)

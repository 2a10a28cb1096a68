"""MAE's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.mae import MAE
from nolabel.recipes.choices import batch_size, is_brief, is_small
from nolabel.types import Optim


def automatic(method: type[MAE], context: RecipeContext) -> Recipe:
    """A small decoder, and small batches for short runs: more steps per minute.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        vit_pico     creatures      18.9 ± 2.9  (20.8)  below random
        vit_pico     fashion-mnist  73.0 ± 1.2  (61.7)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 64 if brief else 256)
    options = method.Options(
        decoder_dim=128 if brief else 256,
        decoder_depth=2 if brief else 4,
        decoder_heads=4 if brief else 8,
        scale=(0.5, 1.0) if small else (0.2, 1.0),
    )
    optim = Optim(
        lr=1.5e-3 if brief else 1.5e-4 * batch / 256, warmup_epochs=4, lr_end=0.0,
        weight_decay=0.05, beta2=0.95,
    )  # fmt: skip
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=400)

"""SigLIP's automatic recipe."""

from __future__ import annotations

import math

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.siglip import SigLIP
from nolabel.recipes.choices import batch_size, is_brief, is_small
from nolabel.types import Optim


def automatic(method: type[SigLIP], context: RecipeContext) -> Recipe:
    """A small text tower, and an initial bias of -log(batch size).

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      18.2 ± 1.0  (20.5)  below random
        vit_pico     creatures      17.4 ± 1.7  (18.8)  below random

    With text (benchmarks/results/image_text.json, 4 minutes of a CPU thread, `creatures`): 17.2 %
    zero-shot accuracy over 10 classes; image-to-caption retrieval R@1 22.8 % (chance 0.2 %).
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 256, least=2)
    options = method.Options(
        vocabulary=8192, context=32 if brief else 64,
        projection=128 if brief else 512,
        text_dim=128 if brief else 512,
        text_depth=2 if brief else 6,
        text_heads=4 if brief else 8,
        # It hardly moves in few steps: it starts where a batch of this size wants it.
        bias=-math.log(batch),
        scale=(0.6, 1.0) if small else (0.5, 1.0),
    )  # fmt: skip
    optim = Optim(
        lr=1e-3 if brief else 5e-4, warmup_epochs=2, lr_end=0.0, weight_decay=0.05, beta2=0.95
    )
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=50)

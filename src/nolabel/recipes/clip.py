"""CLIP's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.clip import CLIP
from nolabel.recipes.choices import batch_size, is_brief, is_small
from nolabel.types import Optim


def automatic(method: type[CLIP], context: RecipeContext) -> Recipe:
    """A small text tower and a vocabulary learnt from the captions.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      34.1 ± 1.3  (20.5)
        vit_pico     creatures      28.6 ± 0.6  (18.8)

    With text (benchmarks/results/image_text.json, 4 minutes of a CPU thread, `creatures`): 45.1 %
    zero-shot accuracy over 10 classes; image-to-caption retrieval R@1 68.2 % (chance 0.2 %).
    """
    small, brief = is_small(context), is_brief(context)
    options = method.Options(
        vocabulary=8192, context=32 if brief else 77,
        projection=128 if brief else 512,
        text_dim=128 if brief else 512,
        text_depth=2 if brief else 6,
        text_heads=4 if brief else 8,
        scale=(0.6, 1.0) if small else (0.5, 1.0),
    )  # fmt: skip
    optim = Optim(
        lr=2e-3 if brief else 5e-4, warmup_epochs=2, lr_end=0.0, weight_decay=0.2,
        beta2=0.98, eps=1e-6,
    )  # fmt: skip
    batch = batch_size(context, 256, least=2)
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=50)

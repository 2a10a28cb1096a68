"""BEiT's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.beit import BEiT
from nolabel.recipes.choices import batch_size, is_brief, is_small
from nolabel.types import Optim


def automatic(method: type[BEiT], context: RecipeContext) -> Recipe:
    """Masked blocks scaled to the number of patches, no drop path, a higher rate for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        vit_pico     creatures      15.6 ± 1.1  (20.9)  below random
        vit_pico     fashion-mnist  59.5 ± 0.2  (58.4)

    The tokenizer was a vqvae, trained for two minutes too. Two minutes are too short for BEiT to
    learn much of the prediction of tokens.
    """
    small, brief = is_small(context), is_brief(context)
    patches = (context.image_size // context.patch_size) ** 2
    options = method.Options(
        smallest_block=max(min(16, patches // 16), 1),
        drop_path=0.0,
        scale=(0.5, 1.0) if small else (0.2, 1.0),
        jitter=0.2 if small else 0.4,
    )
    optim = Optim(
        lr=2e-3 if brief else 5e-4, warmup_epochs=4, lr_end=0.0, weight_decay=0.05, clip=3.0
    )
    return Recipe(options=options, optim=optim, batch_size=batch_size(context, 128), epochs=200)

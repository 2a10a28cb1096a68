"""The dVAE's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.dvae import DVAE
from nolabel.recipes.choices import batch_size, is_brief
from nolabel.types import Optim


def automatic(method: type[DVAE], context: RecipeContext) -> Recipe:
    """A squared error, a short annealing, and a small decoder for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      20.7 ± 0.2  (20.5)
        resnet_nano  fashion-mnist  72.7 ± 0.4  (75.2)  below random
        vit_pico     creatures      26.8 ± 0.7  (18.8)
        vit_pico     fashion-mnist  57.4 ± 1.1  (56.8)

    The method is meant to train a tokenizer; its features are a by-product.
    """
    brief = is_brief(context)
    options = method.Options(
        codes=256 if brief else 2048,
        spread=8.0, first_temperature=4.0, anneal=0.9,
        kl_weight=0.1, warm=0.1, likelihood="mse",
        decoder_dim=128 if brief else 256,
        decoder_depth=2 if brief else 4,
        decoder_heads=4 if brief else 8,
    )  # fmt: skip
    optim = Optim(lr=2e-3 if brief else 5e-4, warmup_epochs=1, lr_end=0.0, weight_decay=1e-4)
    return Recipe(options=options, optim=optim, batch_size=batch_size(context, 128), epochs=100)

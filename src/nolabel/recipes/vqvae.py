"""The VQ-VAE's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.vqvae import VQVAE
from nolabel.recipes.choices import batch_size, is_brief
from nolabel.types import Optim


def automatic(method: type[VQVAE], context: RecipeContext) -> Recipe:
    """Narrow codes, and a small decoder for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      20.4 ± 0.8  (20.5)  below random
        resnet_nano  fashion-mnist  74.1 ± 0.2  (75.2)  below random
        vit_pico     creatures      26.7 ± 1.6  (18.8)
        vit_pico     fashion-mnist  54.7 ± 1.9  (56.8)  below random

    The method is meant to train a tokenizer; its features are a by-product.
    """
    brief = is_brief(context)
    if brief:
        options = method.Options(code_dim=32, decoder_dim=128, decoder_depth=2, decoder_heads=4)
    else:
        options = method.Options(codes=2048, code_dim=32)
    optim = Optim(lr=2e-3 if brief else 5e-4, warmup_epochs=1, lr_end=0.0, weight_decay=0.0)
    return Recipe(options=options, optim=optim, batch_size=batch_size(context, 128), epochs=100)

"""The autoencoder's automatic recipe."""

from __future__ import annotations

from nolabel.methods.autoencoder import Autoencoder
from nolabel.methods.base import Recipe, RecipeContext
from nolabel.recipes.choices import batch_size
from nolabel.types import Optim


def automatic(method: type[Autoencoder], context: RecipeContext) -> Recipe:
    """A code of more dimensions than the paper's 30, and a narrower decoder than the default.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      33.3 ± 3.5  (20.5)
        resnet_nano  fashion-mnist  79.4 ± 0.2  (75.2)
        vit_pico     creatures      19.6 ± 1.4  (18.8)
        vit_pico     fashion-mnist  73.1 ± 0.7  (56.8)
    """
    batch = batch_size(context, 128)
    optim = Optim(lr=2e-3, warmup_epochs=1, lr_end=0.0, weight_decay=0.01)
    return Recipe(options=method.Options(width=64), optim=optim, batch_size=batch, epochs=100)

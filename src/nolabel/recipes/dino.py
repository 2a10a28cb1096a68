"""DINO's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.dino import DINO
from nolabel.recipes.choices import batch_size, is_brief
from nolabel.recipes.families import EPOCHS, self_distillation, self_distillation_optim

VIT = True  # its attention maps are half of its use


def automatic(method: type[DINO], context: RecipeContext) -> Recipe:
    """For small images: small heads with batch norm and a faster EMA, chosen in short trial runs.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      27.2 ± 2.0  (20.5)
        resnet_nano  fashion-mnist  78.2 ± 0.5  (75.2)
        vit_pico     creatures      24.8 ± 1.7  (19.5)
        vit_pico     fashion-mnist  65.5 ± 1.3  (56.2)

    On the automatic network, `vit_pico` with patches of 8, ten minutes of two cores on
    fashion-mnist: 82.3 (65.3), raw pixels 85.3 (benchmarks/results/fashion_mnist.json, before
    narrow ViTs started from Xavier's matrices).
    """
    brief = is_brief(context)
    batch = batch_size(context, 64 if brief else 128)
    options = method.Options(
        prototypes=1024 if brief else 8192, **self_distillation(context, batch)
    )
    optim = self_distillation_optim(context, 5e-4 * batch / 256, "tensor")
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=EPOCHS)

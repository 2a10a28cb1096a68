"""DINO's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.dino import DINO
from nolabel.recipes.choices import (
    STRONG_HUE,
    batch_size,
    blur_sigma,
    grey_probability,
    is_small,
    local_size,
)
from nolabel.types import Optim


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
    small = is_small(context)
    batch = batch_size(context, 64 if small else 128)
    if small:
        options = method.Options(
            prototypes=1024, hidden=512, bottleneck=128,
            head_batch_norm=True,  # without it, a small ViT stays near collapse for many steps
            teacher_momentum=0.97,  # short runs need a faster EMA
            freeze_last_layer=0, drop_path=0.0,
            local_crops=2, local_size=local_size(context), local_scale=(0.1, 0.4),
            grey=grey_probability(context), jitter=STRONG_HUE,
            blur_sigma=blur_sigma(context),
        )  # fmt: skip
    else:
        options = method.Options(
            prototypes=8192, teacher_momentum=0.99, local_size=local_size(context),
            blur_sigma=blur_sigma(context),
        )  # fmt: skip
    optim = Optim(
        lr=2e-3 if small else 5e-4 * batch / 256, warmup_epochs=2 if small else 10,
        weight_decay=0.04, weight_decay_end=0.2, clip=3.0, clip_by="tensor",
    )  # fmt: skip
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=100)

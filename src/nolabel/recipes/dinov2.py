"""DINOv2's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.dinov2 import DINOv2
from nolabel.recipes.choices import (
    STRONG_HUE,
    batch_size,
    blur_sigma,
    grey_probability,
    is_small,
    local_size,
)
from nolabel.types import Optim


def automatic(method: type[DINOv2], context: RecipeContext) -> Recipe:
    """DINO's small heads and faster EMA, also for the patch loss; no LayerScale.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        vit_pico     creatures      25.4 ± 2.0  (19.5)
        vit_pico     fashion-mnist  60.3 ± 0.5  (56.2)
    """
    small = is_small(context)
    batch = batch_size(context, 64 if small else 128)
    if small:
        options = method.Options(
            prototypes=1024, patch_prototypes=512, hidden=512, bottleneck=128, patch_bottleneck=64,
            head_batch_norm=True, teacher_momentum=0.97, warmup_teacher_temperature_epochs=0,
            freeze_last_layer=0, drop_path=0.0, layer_scale=0.0,
            local_crops=2, local_size=local_size(context),
            global_scale=(0.4, 1.0), local_scale=(0.1, 0.4),
            grey=grey_probability(context), jitter=STRONG_HUE, blur_sigma=blur_sigma(context),
        )  # fmt: skip
    else:
        options = method.Options(
            prototypes=16384, patch_prototypes=8192, local_size=local_size(context, of_224=98),
            blur_sigma=blur_sigma(context),
        )  # fmt: skip
    optim = Optim(
        lr=2e-3 if small else 1e-3 * (batch / 1024) ** 0.5, warmup_epochs=2 if small else 10,
        weight_decay=0.04, weight_decay_end=0.2, clip=3.0, clip_by="module",
    )  # fmt: skip
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=100)

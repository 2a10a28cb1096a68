"""DeepCluster-v2's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.deepclusterv2 import DeepClusterV2
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    colour_jitter,
    grey_probability,
    is_small,
    local_size,
)


def automatic(method: type[DeepClusterV2], context: RecipeContext) -> Recipe:
    """Clusters of at least 20 images, and two local crops for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      23.3 ± 1.6  (20.5)
        resnet_nano  fashion-mnist  74.1 ± 1.1  (75.2)  below random
        vit_pico     creatures      22.5 ± 1.4  (18.8)
        vit_pico     fashion-mnist  56.9 ± 0.7  (56.8)

    The first epoch only fills the memory bank, so short runs have few epochs of training.
    """
    small = is_small(context)
    options = method.Options(
        images=context.images,
        clusters=max(min(256 if small else 1000, context.images // 20), 2),
        hidden=512,
        local_crops=2 if small else 6,
        local_size=local_size(context),
        global_scale=(0.3, 1.0) if small else (0.14, 1.0),
        local_scale=(0.1, 0.4) if small else (0.05, 0.14),
        jitter=colour_jitter(context, (0.8, 0.8, 0.8, 0.2)),
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    batch = batch_size(context, 128, least=2)
    return Recipe(options=options, optim=adamw(context), batch_size=batch, epochs=200)

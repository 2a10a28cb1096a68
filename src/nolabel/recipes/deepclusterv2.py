"""DeepCluster-v2's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.deepclusterv2 import DeepClusterV2
from nolabel.recipes.choices import adamw, batch_size, is_brief
from nolabel.recipes.families import multi_crop_clusters


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
    batch = batch_size(context, 128, least=2)
    options = method.Options(
        images=context.images,
        clusters=max(min(256 if is_brief(context) else 1000, context.images // 20), 2),
        **multi_crop_clusters(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=200)

"""The automatic recipe of distillation."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.distill import Distill
from nolabel.recipes.choices import adamw, batch_size, blur_sigma, is_brief
from nolabel.types import Optim


def automatic(method: type[Distill], context: RecipeContext) -> Recipe:
    """Both losses, with higher temperatures than SEED's; the queue depends on the data's size.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      47.4 ± 2.6  (20.5)
        resnet_nano  fashion-mnist  78.0 ± 0.6  (75.2)
        vit_pico     creatures      29.5 ± 1.5  (18.8)
        vit_pico     fashion-mnist  68.9 ± 0.2  (56.8)

    The teacher was a `resnet_nano`, trained by simclr for two minutes too.
    """
    options = method.Options(
        soft=1.0, features=1.0, anchors=max(min(4096, context.images // 2), 1),
        teacher_temperature=0.05, student_temperature=0.1, blur_sigma=blur_sigma(context),
    )  # fmt: skip
    batch = batch_size(context, 128)
    lr = 2e-3 if is_brief(context) else adamw(context, batch).lr
    optim = Optim(lr=lr, warmup_epochs=2, lr_end=0.0, weight_decay=0.05)
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=100)

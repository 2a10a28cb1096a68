"""SimMIM's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.simmim import SimMIM
from nolabel.recipes.choices import batch_size, is_brief, is_small
from nolabel.types import Optim


def automatic(method: type[SimMIM], context: RecipeContext) -> Recipe:
    """Masked squares of a quarter of a small image, chosen in short trial runs; small batches.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        vit_pico     creatures      12.0 ± 0.6  (19.4)  below random
        vit_pico     fashion-mnist  63.3 ± 0.4  (61.0)
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 64 if brief else 256)
    options = method.Options(
        unit=mask_unit(context, 1 / 4 if small else 1 / 7),  # the paper's: 32 of 224 pixels
        scale=(0.5, 1.0) if small else (0.67, 1.0),
    )
    optim = Optim(
        lr=3e-3 if brief else 2e-4 * batch / 512, warmup_epochs=4, lr_end=0.0,
        weight_decay=0.05, clip=5.0,
    )  # fmt: skip
    return Recipe(options=options, optim=optim, batch_size=batch, epochs=400)


def mask_unit(context: RecipeContext, share: float) -> int:
    """The mask unit in pixels, nearest to `share` of the image: it divides the image and is a
    multiple of the patch."""
    side, patch = context.image_size, context.patch_size
    fit = [u for u in range(patch, side, patch) if side % u == 0]
    return min(fit, key=lambda u: abs(u - side * share), default=patch)

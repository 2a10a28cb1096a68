"""SimCLR's automatic recipe."""

from __future__ import annotations

from nolabel.methods.base import Recipe, RecipeContext
from nolabel.methods.simclr import SimCLR
from nolabel.recipes.choices import (
    adamw,
    batch_size,
    blur_sigma,
    grey_probability,
    is_brief,
    is_small,
)


def automatic(method: type[SimCLR], context: RecipeContext) -> Recipe:
    """A higher temperature, a narrow projector, and a stronger hue jitter for small images.

    Measured (benchmarks/results/methods.json; `nolabel.recipes` says how), k-NN in per cent, the
    untrained network in brackets:

        resnet_nano  creatures      52.3 ± 1.6  (20.5)
        resnet_nano  fashion-mnist  78.6 ± 0.1  (75.2)
        vit_pico     creatures      26.5 ± 1.3  (18.8)
        vit_pico     fashion-mnist  66.5 ± 0.3  (56.8)

    `make demo` (benchmarks/results/demo.json), two and a half minutes of two cores on creatures,
    `resnet_nano`: 73.1 (20.5), raw pixels 38.1. On the automatic network, `vit_pico` with patches
    of 8, ten minutes of two cores on fashion-mnist: 81.0 (65.3), raw pixels 85.3
    (benchmarks/results/fashion_mnist.json, before narrow ViTs started from Xavier's matrices).
    """
    small, brief = is_small(context), is_brief(context)
    batch = batch_size(context, 256, least=2)
    options = method.Options(
        temperature=0.2,
        hidden=512 if brief else 2048,
        scale=(0.3, 1.0) if small else (0.2, 1.0),
        strength=0.4 if small else 0.5,
        hue=1.0 if small else 0.2,  # strong hue, as in `colour_jitter`
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=200)

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
    small_hue,
)
from nolabel.recipes.suited import suited_jitter


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
    strength = 0.4 if small else 0.5
    strength, hue = _jitter(context, strength, small_hue(context) / strength if small else 0.2)
    options = method.Options(
        temperature=0.2,
        hidden=512 if brief else 2048,
        scale=(0.3, 1.0) if small else (0.2, 1.0),
        strength=strength,
        hue=hue,  # relative to the strength
        grey=grey_probability(context),
        blur=0.0 if small else 0.5,
        blur_sigma=blur_sigma(context),
    )
    return Recipe(options=options, optim=adamw(context, batch), batch_size=batch, epochs=200)


def _jitter(context: RecipeContext, strength: float, hue: float) -> tuple[float, float]:
    """Strength and relative hue that suit the images; one strength is for three operations."""
    operations = context.operations
    if operations is None:
        return strength, hue
    jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, hue * strength)
    suited = suited_jitter(jitter, operations)
    if suited == jitter:
        return strength, hue
    b, c, s, h = suited
    least = min(b, c, s) if operations.colourful else min(b, c)
    return least / 0.8, h * 0.8 / least if least else 0.0

"""Choices that several automatic recipes share.

The default ViTs for small pictures are trained for minutes on a CPU, the larger ones for hours on
a GPU. One boundary divides the two: `is_small`.
"""

from __future__ import annotations

from nolabel.methods.base import RecipeContext
from nolabel.types import Optim

SMALL_SIDE = 96  # pixels; up to here pictures are small
STRONG_HUE = (0.4, 0.4, 0.4, 0.4)  # brightness, contrast, saturation, hue


def is_small(context: RecipeContext) -> bool:
    """Whether the network's input has at most 96 pixels a side."""
    return context.image_size <= SMALL_SIDE


def batch_size(context: RecipeContext, most: int, least: int = 1) -> int:
    """The batch that was asked for, else `most` images, but at most a quarter of the data.

    Args:
        context: of the run.
        most: images of a step where the data are many.
        least: images that the loss needs, 2 if it compares images with each other.
    """
    return context.batch_size or max(min(most, context.images // 4), least)


def blur_sigma(context: RecipeContext) -> tuple[float, float]:
    """Least and largest standard deviation of the blur, in pixels.

    The papers' largest is 2 at 224 pixels (SimCLR, DINO); it scales with the picture.
    """
    return 0.1, max(2.0 * context.image_size / 224, 0.2)


def colour_jitter(
    context: RecipeContext, of_photographs: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Strengths of brightness, contrast, saturation, hue: strong hue on small pictures.

    On small pictures colour is a shortcut: two crops of one picture share it, so that a network can
    tell pictures apart without their shapes.
    """
    return STRONG_HUE if is_small(context) else of_photographs


def grey_probability(context: RecipeContext) -> float:
    """How often a view loses its colours: more often on small pictures, as for `colour_jitter`."""
    return 0.5 if is_small(context) else 0.2


def local_size(context: RecipeContext, of_224: int = 96) -> int:
    """Side of the local crops in pixels, in whole patches: half of small pictures.

    Args:
        context: of the run.
        of_224: the paper's side at images of 224 pixels; larger pictures keep its share.
    """
    share = 0.5 if is_small(context) else of_224 / 224
    return context.round_to_patches(context.image_size * share)


def adamw(context: RecipeContext) -> Optim:
    """AdamW in place of the papers' LARS, LARC and SGD, which need large batches or long runs."""
    return Optim(
        lr=3e-3 if context.conv else 1e-3, warmup_epochs=1 if is_small(context) else 10, lr_end=0.0,
        weight_decay=0.05,
    )  # fmt: skip

"""Choices that several automatic recipes share.

The default ViTs for small images are meant for minutes of training on a CPU, the larger ones for
hours on a GPU. `is_small` is the boundary between the two.
"""

from __future__ import annotations

from nolabel.methods.base import RecipeContext
from nolabel.types import Optim

SMALL_SIDE = 96  # pixels; images of at most this side are small
STRONG_HUE = (0.4, 0.4, 0.4, 0.4)  # brightness, contrast, saturation, hue


def is_small(context: RecipeContext) -> bool:
    """Whether the network's input has at most 96 pixels a side."""
    return context.image_size <= SMALL_SIDE


def batch_size(context: RecipeContext, most: int, least: int = 1) -> int:
    """The user's batch size, else `most` images, but at most a quarter of the data.

    Args:
        context: of the run.
        most: batch size for large data sets.
        least: smallest batch size of the loss: 2 if it compares images with each other.
    """
    return context.batch_size or max(min(most, context.images // 4), least)


def blur_sigma(context: RecipeContext) -> tuple[float, float]:
    """Least and largest standard deviation of the blur, in pixels.

    The papers' largest is 2 at 224 pixels (SimCLR, DINO); here it is proportional to the size.
    """
    return 0.1, max(2.0 * context.image_size / 224, 0.2)


def colour_jitter(
    context: RecipeContext, of_photographs: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Strengths of brightness, contrast, saturation and hue, with a strong hue for small images.

    On small images colour is a shortcut: two crops of one image have the same colours, so a network
    can solve the task without shapes.
    """
    return STRONG_HUE if is_small(context) else of_photographs


def grey_probability(context: RecipeContext) -> float:
    """Probability that a view becomes grey: higher for small images, as with `colour_jitter`."""
    return 0.5 if is_small(context) else 0.2


def local_size(context: RecipeContext, of_224: int = 96) -> int:
    """Side of the local crops in pixels, a multiple of the patch: half of the side of small images.

    Args:
        context: of the run.
        of_224: the paper's side for images of 224 pixels; it is scaled to other large images.
    """
    share = 0.5 if is_small(context) else of_224 / 224
    return context.round_to_patches(context.image_size * share)


def adamw(context: RecipeContext) -> Optim:
    """AdamW in place of the papers' LARS, LARC and SGD, which need large batches or long runs."""
    return Optim(
        lr=3e-3 if context.conv else 1e-3, warmup_epochs=1 if is_small(context) else 10, lr_end=0.0,
        weight_decay=0.05,
    )  # fmt: skip

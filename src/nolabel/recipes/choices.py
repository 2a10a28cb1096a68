"""Choices that several automatic recipes share.

They depend on four facts. Small images (`is_small`) need other crops and colours than photographs.
Images of at most 160 pixels without a GPU mean training for minutes (`is_brief`): small heads,
small batches and high learning rates, from pilot runs; other runs get the paper's widths and rates
near the paper's.
The length of the run sets the EMA momentum (`ema_momentum`) and limits schedules at the start of
the run (`first_epochs`). The number of images limits batches and queues.
"""

from __future__ import annotations

import math

from nolabel.methods.base import RecipeContext
from nolabel.recipes.suited import SHORTCUT
from nolabel.types import Optim

SMALL_SIDE = 96  # pixels; images of at most this side are small
BRIEF_SIDE = 160  # pixels; up to here a run without a GPU is expected to be brief
SMALL_JITTER = (0.4, 0.4, 0.4)  # brightness, contrast, saturation of small images
SMALL_HUE, SMALL_GREY = (0.1, 0.4), (0.2, 0.5)  # from images that share colours to colour shortcuts
HORIZON = (0.0006, 0.025)  # range of 1 / (1 - momentum) of an EMA, as share of the run's steps


def is_small(context: RecipeContext) -> bool:
    """Whether the network's input has at most 96 pixels a side."""
    return context.image_size <= SMALL_SIDE


def is_brief(context: RecipeContext) -> bool:
    """Whether the run is expected to take minutes or an evening on a CPU, not days."""
    return context.image_size <= BRIEF_SIDE and context.device != "cuda"


def batch_size(context: RecipeContext, most: int, least: int = 1) -> int:
    """The user's batch size, else `most` images, but at most a quarter of the data.

    Args:
        context: of the run.
        most: batch size for large data sets.
        least: smallest batch size of the loss: 2 if it compares images with each other.
    """
    return context.batch_size or max(min(most, context.images // 4), least)


def run_steps(context: RecipeContext, batch: int, epochs: int) -> int:
    """Steps of the run: those of the context, else of the recipe's own epochs and batch."""
    return context.steps or epochs * epoch_steps(context, batch)


def epoch_steps(context: RecipeContext, batch: int) -> int:
    """Steps of an epoch, at least 1."""
    return max(context.images // batch, 1)


def ema_momentum(steps: int, root: float, least: float = 25.0) -> float:
    """Momentum of an EMA teacher in a run of so many steps.

    It averages the student over about 1 / (1 - m) steps, its horizon. A horizon proportional to the
    square root of the length fits the papers and pilot runs of minutes: for DINO 250 of 125,000 and
    33 of 1,900 steps, for BYOL 250 of 312,000 and 10 of 470.

    Args:
        steps: of the run.
        root: horizon = root * sqrt(steps), within `HORIZON` of the run.
        least: shortest horizon, which in runs below 1,000 steps is above `HORIZON`: a faster
            teacher was worse there (DINO, 375 steps on creatures, one seed: k-NN 20.4 % with a
            horizon of 11 steps, 25.7 % with 33).
    """
    low, high = (share * steps for share in HORIZON)
    return 1.0 - 1.0 / max(min(max(root * math.sqrt(steps), low), high), least)


def first_epochs(
    context: RecipeContext, batch: int, epochs: int, *, paper: float, share: float
) -> float:
    """Epochs of a schedule at the start of the run: the paper's, but at most a share of the run.

    Args:
        context: of the run.
        batch: images of a step.
        epochs: the recipe's own length, for a run whose length is not asked for.
        paper: epochs that the paper takes.
        share: of the run.
    """
    return min(paper, share * run_steps(context, batch, epochs) / epoch_steps(context, batch))


def blur_sigma(context: RecipeContext) -> tuple[float, float]:
    """Least and largest standard deviation of the blur, in pixels."""
    return 0.1, largest_blur(context.image_size)


def largest_blur(image_size: int) -> float:
    """Largest standard deviation of the blur, in pixels.

    The papers' is 2 at 224 pixels (SimCLR, DINO); here it is proportional to the size.
    """
    return max(2.0 * image_size / 224, 0.2)


def colour_jitter(
    context: RecipeContext, of_photographs: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Strengths of brightness, contrast, saturation and hue: for small images see `small_hue`."""
    return small_jitter(context) if is_small(context) else of_photographs


def small_jitter(context: RecipeContext) -> tuple[float, float, float, float]:
    """Strengths of brightness, contrast, saturation and hue of small images."""
    return (*SMALL_JITTER, small_hue(context))


def small_hue(context: RecipeContext) -> float:
    """Largest shift of the hue of small images, in turns: strong where colour is a shortcut.

    It is one where two crops of an image find each other by their colours: a network solves the
    task without shapes. Where images share their colours there is no such shortcut, and colour may
    be what their kinds differ by. SimCLR on small ResNets, 350 to 400 steps of 128, one seed, k-NN
    in per cent with hue 0.1 and grey 0.2, with 0.4 and 0.5 (with 0.2 and 0.2): creatures, whose
    colours are chance (`colour_matches` 0.95), 38 and 66 (62); stamps (0.76) 54 and 51; tiles of
    maps (0.59) 81 and 70; clipart (0.57) 63 and 63.
    """
    return _by_shortcut(context, SMALL_HUE)


def grey_probability(context: RecipeContext) -> float:
    """Probability that a view becomes grey: for small images it goes with `small_hue`."""
    return _by_shortcut(context, SMALL_GREY) if is_small(context) else 0.2


def _by_shortcut(context: RecipeContext, ends: tuple[float, float]) -> float:
    """From the first value, without a shortcut, to the second."""
    if context.operations is None:
        return ends[1]
    low, high = SHORTCUT
    share = min(max((context.operations.colour_matches - low) / (high - low), 0.0), 1.0)
    return round(ends[0] + share * (ends[1] - ends[0]), 3)


def local_size(context: RecipeContext, of_224: int = 96) -> int:
    """Side of the local crops in pixels, a multiple of the patch: half of the side of small images.

    Args:
        context: of the run.
        of_224: the paper's side for images of 224 pixels; it is scaled to other large images.
    """
    share = 0.5 if is_small(context) else of_224 / 224
    return context.round_to_patches(context.image_size * share)


def adamw(context: RecipeContext, batch: int) -> Optim:
    """AdamW in place of the papers' LARS, LARC and SGD, which need large batches or long runs.

    Photographs get DINO's rate for ViTs, 5e-4 for 256 images, and twice that for other networks.
    """
    if is_brief(context):
        lr = 3e-3 if context.conv else 1e-3
    else:
        lr = (5e-4 if not context.conv and not is_small(context) else 1e-3) * batch / 256
    return Optim(lr=lr, warmup_epochs=1 if is_brief(context) else 10, lr_end=0.0, weight_decay=0.05)

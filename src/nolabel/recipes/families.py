"""Option blocks of automatic recipes of one family: DINO, iBOT and DINOv2; SwAV and DeepCluster."""

from __future__ import annotations

from typing import Any

from nolabel.methods.base import RecipeContext
from nolabel.recipes.choices import (
    blur_sigma,
    colour_jitter,
    ema_momentum,
    first_epochs,
    grey_probability,
    is_brief,
    is_small,
    local_size,
    run_steps,
    small_jitter,
)
from nolabel.types import Optim

EPOCHS = 100  # of self-distillation, unless a length is asked for


def self_distillation(
    context: RecipeContext, batch: int, *, of_224: int = 96, drop_path: float = 0.1
) -> dict[str, Any]:
    """What DINO, iBOT and DINOv2 share: heads, the teacher's pace, the local crops, colours.

    In brief runs the heads are small and have batch norm (without it a small ViT is near collapse
    for long), the prototypes are free from the start, and two local crops must do. ResNets have no
    stochastic depth, as in the official code.

    Args:
        context: of the run.
        batch: images of a step.
        of_224: the paper's side of local crops at images of 224 pixels.
        drop_path: the paper's, of long runs.
    """
    brief, small = is_brief(context), is_small(context)
    freeze = 0.0 if brief else first_epochs(context, batch, EPOCHS, paper=1.0, share=0.05)
    options: dict[str, Any] = {
        "teacher_momentum": ema_momentum(run_steps(context, batch, EPOCHS), 0.7),
        "freeze_last_layer": freeze,
        "drop_path": 0.0 if brief or context.conv else drop_path,
        "local_size": local_size(context, of_224),
        "blur_sigma": blur_sigma(context),
    }
    if brief:
        options |= {"hidden": 512, "bottleneck": 128, "head_batch_norm": True, "local_crops": 2}
    if small:
        options |= {"local_scale": (0.1, 0.4), "jitter": small_jitter(context)}
        options |= {"grey": grey_probability(context)}
    return options


def temperature_warmup(context: RecipeContext, batch: int) -> dict[str, Any]:
    """Epochs in which the teacher's temperature rises: 30, at most 30 % of the run; 0 if brief."""
    rise = first_epochs(context, batch, EPOCHS, paper=30.0, share=0.3)
    return {"warmup_teacher_temperature_epochs": 0.0 if is_brief(context) else rise}


def self_distillation_optim(context: RecipeContext, lr: float, clip_by: str) -> Optim:
    """AdamW of the family: a high rate in brief runs, else `lr`."""
    brief = is_brief(context)
    return Optim(
        lr=2e-3 if brief else lr, warmup_epochs=2 if brief else 10, weight_decay=0.04,
        weight_decay_end=0.2, clip=3.0, clip_by=clip_by,
    )  # fmt: skip


def multi_crop_clusters(context: RecipeContext) -> dict[str, Any]:
    """What SwAV and DeepCluster v2 share: the head, the crops, colours."""
    brief, small = is_brief(context), is_small(context)
    return {
        "hidden": 512 if brief else 2048,
        "local_crops": 2 if brief else 6,
        "local_size": local_size(context),
        "global_scale": (0.3, 1.0) if small else (0.14, 1.0),
        "local_scale": (0.1, 0.4) if small else (0.05, 0.14),
        "jitter": colour_jitter(context, (0.8, 0.8, 0.8, 0.2)),
        "grey": grey_probability(context),
        "blur": 0.0 if small else 0.5,
        "blur_sigma": blur_sigma(context),
    }

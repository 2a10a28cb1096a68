"""The automatic choice of image size, network, patch and warm-up."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

from nolabel.recipes.choices import SMALL_SIDE
from nolabel.types import Optim


def default_image_size(side: int) -> int:
    """The network's input in pixels for pictures whose shorter side has `side` pixels."""
    return 32 if side < 48 else 64 if side < 96 else 96 if side < 160 else 224


def default_network(needs: Set[str], image_size: int, *, on_gpu: bool) -> tuple[str, int | None]:
    """A ViT fit for the image size, the machine and the method.

    In minutes on a CPU, many steps of the smallest network on few patches learn the most. Methods
    that drop patches afford a larger network. Methods that hide patches of one view need enough of
    them, those with several views of an image do not.

    Args:
        needs: what the method needs of a backbone (`Method.needs`).
        image_size: side of the network's input, pixels.
        on_gpu: whether the run has a CUDA device.

    Returns:
        The name of a backbone, and the side of its patch in pixels (None: the network's own).
    """
    if image_size > SMALL_SIDE:
        return ("vit_small" if on_gpu else "vit_tiny"), None
    if on_gpu or "drop" in needs:
        name = "vit_micro" if on_gpu else "vit_nano"
        return name, default_patch(name, image_size)
    several_views = "mask" not in needs or "any_size" in needs
    return "vit_pico", max(image_size // (4 if several_views else 8), 1)


def default_patch(backbone: str, image_size: int) -> int | None:
    """Side in pixels of a patch for a network that was named; None: the network's own."""
    if backbone in ("vit_pico", "vit_nano", "vit_micro"):
        return max(image_size // 8, 4)
    if backbone == "swin_nano":
        return max(image_size // 16, 2)
    return None


def limited_warmup(optim: Optim, steps: int, steps_per_epoch: int) -> Optim:
    """The optimiser with a warm-up of at most a tenth of the run."""
    most = max(steps / steps_per_epoch / 10, 0.0)
    return dataclasses.replace(optim, warmup_epochs=min(optim.warmup_epochs, most))

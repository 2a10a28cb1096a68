"""The automatic choice of image size, network, patch and warm-up."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

from nolabel.recipes.choices import SMALL_SIDE
from nolabel.types import Optim


def default_image_size(side: int) -> int:
    """Side of the network's input in pixels, for runs whose length is given in steps or epochs.

    Args:
        side: shorter side of the images, in pixels.
    """
    return 32 if side < 48 else 64 if side < 96 else 96 if side < 160 else 224


def default_network(
    needs: Set[str], image_size: int, *, on_gpu: bool, vit: bool
) -> tuple[str, int | None]:
    """The default network for the image size, the machine and the method.

    For runs whose length is given in steps or epochs; that of others is chosen by `recipes.ladder`.
    In some minutes on a CPU a small ResNet learns far more than a ViT of the same cost, so methods
    that take either get a ResNet there. Methods that drop patches are cheaper, so they take a
    larger ViT. Methods that mask patches of a single view need enough patches; those with several
    views do not.

    Args:
        needs: what the method needs of a backbone (`Method.needs`).
        image_size: side of the network's input, pixels.
        on_gpu: whether the run has a CUDA device.
        vit: whether the method takes a ViT in any case (`recipes.takes_vit`).

    Returns:
        The name of a backbone, and the side of its patch in pixels (None: the network's own).
    """
    if not on_gpu and not vit:
        name = "resnet_nano" if image_size < 64 else "resnet_micro"
        return (name if image_size <= SMALL_SIDE else "resnet18"), None
    if image_size > SMALL_SIDE:
        return ("vit_small" if on_gpu else "vit_tiny"), None
    if on_gpu or "drop" in needs:
        name = "vit_micro" if on_gpu else "vit_nano"
        return name, default_patch(name, image_size)
    several_views = "mask" not in needs or "any_size" in needs
    return "vit_pico", max(image_size // (4 if several_views else 8), 1)


def default_patch(backbone: str, image_size: int) -> int | None:
    """Side in pixels of the patches of a network that the user named; None: its own default."""
    if backbone in ("vit_pico", "vit_nano", "vit_micro"):
        return max(image_size // 8, 4)
    if backbone == "swin_nano":
        return max(image_size // 16, 2)
    return None


def limited_warmup(optim: Optim, steps: int, steps_per_epoch: int) -> Optim:
    """The optimiser with a warm-up of at most a tenth of the run."""
    most = max(steps / steps_per_epoch / 10, 0.0)
    return dataclasses.replace(optim, warmup_epochs=min(optim.warmup_epochs, most))

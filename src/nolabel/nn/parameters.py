"""Counting and freezing parameters."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from nolabel.types import Clock


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters.

    Args:
        module: any module; a shared parameter counts once.
        trainable: count only those that require gradients.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def freeze_first_epochs(modules: Iterable[nn.Module], epochs: float, clock: Clock) -> None:
    """Drops the gradients of modules in the first epochs, which may be a fraction of one."""
    if clock.step < epochs * clock.steps_per_epoch:
        for module in modules:
            for p in module.parameters():
                p.grad = None

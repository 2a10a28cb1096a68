"""Counting parameters."""

from __future__ import annotations

from torch import nn


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters.

    Args:
        module: any module; a shared parameter counts once.
        trainable: count only those that require gradients.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)

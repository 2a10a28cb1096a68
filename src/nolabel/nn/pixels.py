"""Pixels: how well they are rebuilt, and back from what a network takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor


def mean_colour_error(x: Tensor) -> Tensor:
    """Mean squared error of painting each image in its own mean colour: the trivial guess that a
    reconstruction must beat. Images [N, C, H, W] in any normalisation; scalar."""
    return x.float().var((2, 3), correction=0).mean()


def logit_laplace_nll(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """-log p of values in (0, 1) whose logit has a Laplace distribution (Ramesh et al. 2021, A.3).

        p(x | mu, b) = exp(-|logit(x) - mu| / b) / (2 b x (1 - x))

    Args:
        x: values above 0 and below 1, of any shape.
        mu, log_b: location and logarithm of the scale, of x's shape.

    Returns:
        x's shape, in nats; negative where the density is above 1.
    """
    distance = (x.logit() - mu).abs() * (-log_b).exp()
    return distance + log_b + math.log(2.0) + (x * (1.0 - x)).log()


def to_pixels(x: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised [N, C, H, W] back to uint8 [N, H, W, 3].

    Of more channels than three the first three are shown, of fewer the first as grey.
    """
    x = x.transpose(0, 2, 3, 1) * np.asarray(std) + np.asarray(mean)
    x = x[..., :3] if x.shape[-1] >= 3 else x[..., :1].repeat(3, -1)
    return (x.clip(0, 1) * 255).round().astype(np.uint8)

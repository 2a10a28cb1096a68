"""Pixels: reconstruction errors, and images back from normalised input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def mean_colour_error(x: Tensor) -> Tensor:
    """Mean squared error of predicting each image's mean colour: a baseline for reconstructions.

    Args:
        x: images [N, C, H, W] in any normalisation.

    Returns:
        scalar fp32.
    """
    return x.float().var((2, 3), correction=0).mean()


def logit_laplace_nll(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """-log p of values in (0, 1) whose logit has a Laplace distribution (Ramesh et al. 2021, A.3).

        p(x | mu, b) = exp(-|logit(x) - mu| / b) / (2 b x (1 - x))

    Args:
        x: in (0, 1), any shape.
        mu, log_b: location and logarithm of the scale, of the shape of x.

    Returns:
        in nats, of the shape of x; negative if the density is above 1. Gradient to all.
    """
    distance = (x.logit() - mu).abs() * (-log_b).exp()
    return distance + log_b + math.log(2.0) + (x * (1.0 - x)).log()


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std of images [N, C, H, W], each channel by its own."""
    return (x - _channels(mean, x)) / _channels(std, x)


def denormalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The inverse of `normalise`."""
    return x * _channels(std, x) + _channels(mean, x)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    """[C, 1, 1] in fp32, on the device of `like`."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1)


def to_pixels(x: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised images to displayable ones: the inverse of (pixel - mean) / std.

    Args:
        x: float [N, C, H, W]; of more than three channels the first three are taken, of fewer the
            first as grey.
        mean, std: of each channel, for pixels in [0, 1].

    Returns:
        uint8 [N, H, W, 3].
    """
    x = x.transpose(0, 2, 3, 1) * np.asarray(std) + np.asarray(mean)
    x = x[..., :3] if x.shape[-1] >= 3 else x[..., :1].repeat(3, -1)
    return (x.clip(0, 1) * 255).round().astype(np.uint8)

"""Images in their own shape: whole, not cropped to a square, where the network can take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nolabel.encoders import Encoder
from nolabel.encoders.encoder import Images, list_images, read_pixels
from nolabel.nn.pixels import to_pixels
from nolabel.views.images import image_list

SHOWN_SIDE = 480  # shorter side in pixels at which images are drawn, at most
LONGEST = 2.0  # longer side of the images, relative to the shorter; what exceeds it is cropped


class Whole(NamedTuple):
    """Images prepared for a network, and the same images as they are drawn.

    Attributes:
        x: normalised, float32 [N, C, H, W] on the encoder's device.
        shown: uint8 [N, H', W', 3] at their own resolution, or at `SHOWN_SIDE`.
    """

    x: Tensor
    shown: np.ndarray


def prepare_whole(encoder: Encoder, images: Images) -> Whole:
    """Prepares images in the shape that they share, or in the median of their shapes.

    The shorter side becomes the encoder's image size and the longer one a multiple of its patches.
    Where the shape of an image differs from the common one, its middle is cropped. A network that
    takes one size only gets squares, as `Encoder.prepare` makes them.

    Args:
        encoder: any.
        images: as for `Encoder.prepare`; prepared tensors are taken as they are.

    Raises:
        UsageError, DataError: as `Encoder.prepare`.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        return _as_prepared(encoder, images)
    if "any_size" not in encoder.backbone.can:
        return _as_prepared(encoder, images)
    side, cell = encoder.image_size, encoder.backbone.patch_size
    largest = max(side, SHOWN_SIDE)
    pixels = [  # one photograph after the other is in memory at its full size
        _resize(image_list([read_pixels(image, encoder.channels)], encoder.channels)[0], largest)
        for image in list_images(images, encoder.channels)
    ]
    if not pixels:
        return _as_prepared(encoder, [])
    ratio = float(np.median([p.shape[1] / p.shape[2] for p in pixels]))  # of height to width
    ratio = min(max(ratio, 1 / LONGEST), LONGEST)
    longer = max(round(side * max(ratio, 1 / ratio) / cell) * cell, side)
    shape = (longer, side) if ratio > 1 else (side, longer)
    x = torch.stack([_cover(p, shape) for p in pixels])
    inputs = encoder.normalise(x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    smallest = min(min(p.shape[1:]) for p in pixels)
    if smallest <= side:
        return Whole(inputs, to_pixels(inputs.cpu().numpy(), encoder.mean, encoder.std))
    scale = min(smallest, SHOWN_SIDE) / side
    large = (round(shape[0] * scale), round(shape[1] * scale))
    shown = torch.stack([_cover(p, large) for p in pixels]).clamp(0, 255) / 255
    channels = encoder.channels
    return Whole(inputs, to_pixels(shown.numpy(), [0.0] * channels, [1.0] * channels))


def _as_prepared(encoder: Encoder, images: Images) -> Whole:
    x = encoder.prepare(images)
    return Whole(x, to_pixels(x.cpu().numpy(), encoder.mean, encoder.std))


def _resize(image: Tensor, shorter: int) -> Tensor:
    """An image [H, W, C] in 0..255, its shorter side at most `shorter`: float32 [C, H, W]."""
    h, w = image.shape[:2]
    x = image.permute(2, 0, 1).float()
    if min(h, w) <= shorter:
        return x
    size = (round(h * shorter / min(h, w)), round(w * shorter / min(h, w)))
    return F.interpolate(x[None], size=size, mode="bicubic", antialias=True)[0]


def _cover(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The middle of an image float [C, H, W], resized to cover a shape (height, width)."""
    h, w = image.shape[1:]
    if (h, w) == shape:
        return image
    scale = max(shape[0] / h, shape[1] / w)
    height, width = min(round(shape[0] / scale), h), min(round(shape[1] / scale), w)
    top, left = (h - height) // 2, (w - width) // 2
    middle = image[None, :, top : top + height, left : left + width]
    return F.interpolate(middle, size=shape, mode="bicubic", antialias=True)[0]

"""Checks and converts the inputs of the executors: images and keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nolabel.errors import UsageError

Images = np.ndarray | Tensor | Sequence[np.ndarray | Tensor]


def image_list(images: Images, channels: int = 3) -> list[Tensor]:
    """Converts images to tensors.

    Args:
        images: uint8 [B, H, W, C], or B arrays or tensors uint8 or uint16 [H_i, W_i, C].
        channels: number of channels C.

    Returns:
        B tensors [H_i, W_i, C] with values in 0..255: uint8 images unchanged, without a copy where
        possible; uint16 images as float32, scaled by 255 / 65535.

    Raises:
        UsageError: an image has another dtype or shape.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
        images = torch.from_numpy(as_sharable(images))  # one conversion for the whole batch
    out = []
    for i, image in enumerate(images):
        dtypes = (torch.uint8, torch.uint16) if isinstance(image, Tensor) else (np.uint8, np.uint16)
        shape = image.shape
        if image.dtype not in dtypes or len(shape) != 3 or shape[2] != channels or 0 in shape:
            hint = "; repeat a single channel three times" if channels == 3 else ""
            raise UsageError(
                f"Image {i} of the batch is {image.dtype} {list(shape)}, but views are made of "
                f"uint8 [H, W, {channels}] (or uint16){hint}."
            )
        if (
            image.dtype == dtypes[1]
        ):  # few torch operators take uint16; float32 represents it exactly
            values = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
            image = values.astype(np.float32) * np.float32(255 / 65535)
        out.append(image if isinstance(image, Tensor) else torch.from_numpy(as_sharable(image)))
    return out


def key_array(keys: npt.ArrayLike | Tensor, count: int) -> npt.NDArray[np.int64]:
    """Converts keys to int64 [B].

    Args:
        keys: index of each image in its source, int [B].
        count: number of images B.

    Raises:
        UsageError: there is not exactly one key per image.
    """
    array = np.asarray(keys.cpu() if isinstance(keys, Tensor) else keys).astype(np.int64)
    if array.shape != (count,):
        raise UsageError(
            f"Got keys of shape {list(array.shape)} for {count} images; need one each."
        )
    return array


def as_sharable(image: np.ndarray) -> np.ndarray:
    """The array itself, or a copy if torch cannot share its memory.

    torch cannot share arrays that are read-only or have negative strides.
    """
    ok = image.flags.writeable and min(image.strides, default=0) >= 0
    return image if ok else image.copy()

"""What comes into the views: images of many types as tensors, and their keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nolabel.errors import UsageError

Images = np.ndarray | Tensor | Sequence[np.ndarray | Tensor]


def image_list(images: Images, channels: int = 3) -> list[Tensor]:
    """The images as tensors [H_i, W_i, C] with values in 0..255: uint8 without copying, and
    float32 where they were 16 bits deep.

    Raises:
        UsageError: an image has another type or shape.
    """
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
        images = torch.from_numpy(sharable(images))  # shared as one
    out = []
    for i, image in enumerate(images):
        kinds = (torch.uint8, torch.uint16) if isinstance(image, Tensor) else (np.uint8, np.uint16)
        shape = image.shape
        if image.dtype not in kinds or len(shape) != 3 or shape[2] != channels or 0 in shape:
            more = "; repeat a single channel three times" if channels == 3 else ""
            raise UsageError(
                f"Image {i} of the batch is {image.dtype} {list(shape)}, but views are made of "
                f"uint8 [H, W, {channels}] (or uint16){more}."
            )
        if image.dtype == kinds[1]:  # torch can hardly compute with it; float32 keeps all its bits
            deep = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
            image = deep.astype(np.float32) * np.float32(255 / 65535)
        out.append(image if isinstance(image, Tensor) else torch.from_numpy(sharable(image)))
    return out


def key_array(keys: npt.ArrayLike | Tensor, count: int) -> npt.NDArray[np.int64]:
    """The keys as int64 [B].

    Raises:
        UsageError: there is not one key per image.
    """
    array = np.asarray(keys.cpu() if isinstance(keys, Tensor) else keys).astype(np.int64)
    if array.shape != (count,):
        raise UsageError(
            f"Got keys of shape {list(array.shape)} for {count} images; need one each."
        )
    return array


def sharable(image: np.ndarray) -> np.ndarray:
    """The array, or a copy where torch cannot share it: read-only, or with negative strides."""
    shared = image.flags.writeable and min(image.strides, default=0) >= 0
    return image if shared else image.copy()

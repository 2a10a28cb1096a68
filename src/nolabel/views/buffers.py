"""A pool of reusable result buffers, which saves the page faults of fresh large arrays."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

_MAX_FREE = 4  # free buffers to keep; plans rarely have more kinds of views


class BufferPool:
    """Float32 CPU tensors whose memory returns to the pool when no tensor refers to it any more."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised float32 tensor of this shape."""
        for i in range(len(self._free)):
            if self._free[i].shape == shape:
                buffer = self._free.pop(i)
                break
        else:
            buffer = np.empty(shape, np.float32)  # NumPy uses huge pages, torch does not
        # The tensor and all its views hold a reference to the array that it was made from. This
        # extra view of the buffer is not used elsewhere, so that it is finalised with the last
        # of them, which releases the buffer.
        handle = buffer.view()
        weakref.finalize(handle, self._release, buffer)
        return torch.from_numpy(handle)

    def _release(self, buffer: np.ndarray) -> None:
        if len(self._free) < _MAX_FREE:
            self._free.append(buffer)

"""Memory of results that is used again, since fresh pages of a large array cost the system time."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

_MOST = 4  # free buffers kept: of the kinds of views in a plan there are seldom more


class BufferPool:
    """Float32 tensors on the CPU whose memory returns to the pool when nothing uses it."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor float32 of this shape with undefined values."""
        for i in range(len(self._free)):
            if self._free[i].shape == shape:
                buffer = self._free.pop(i)
                break
        else:
            buffer = np.empty(shape, np.float32)  # numpy asks for large pages, torch does not
        # torch keeps the array that a tensor was made of alive for as long as the tensor or any
        # view of it lives. This one is made for that alone, so its end releases the buffer.
        handle = buffer.view()
        weakref.finalize(handle, self._release, buffer)
        return torch.from_numpy(handle)

    def _release(self, buffer: np.ndarray) -> None:
        if len(self._free) < _MOST:
            self._free.append(buffer)

"""Torch's global random state: read, set, and kept unchanged around a piece of work.

Nothing of Python's `random` or numpy's global generator is kept: the project draws from neither.
Views and the order of images are keyed by (seed, epoch, sample) and have no state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor


class RngState(TypedDict):
    """Torch's random state, as uint8 tensors."""

    cpu: Tensor
    cuda: list[Tensor]  # of the device in use; empty without CUDA


def rng_state() -> RngState:
    """Torch's random state, of the CPU and of the CUDA device in use."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: RngState) -> None:
    """The inverse of `rng_state`; a device that is only in one of the two is left alone."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


@contextlib.contextmanager
def preserve_rng() -> Iterator[None]:
    """What is drawn inside does not move the random state outside.

    The CUDA device's state is kept too if CUDA is in use already; work on the CPU does not start
    CUDA.
    """
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)

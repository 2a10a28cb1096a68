"""Torch's global random state: get, set, and preserve it.

The project does not use Python's `random` or numpy's global generator, so their state is not saved.
Views and the order of images are functions of (seed, epoch, sample) and have no state.
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
    """Sets the state that `rng_state` returned; without CUDA here or there, only the CPU's."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


@contextlib.contextmanager
def preserve_rng() -> Iterator[None]:
    """A context that restores torch's random state at its end.

    CUDA's state only if CUDA is initialised; this does not initialise it.
    """
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)

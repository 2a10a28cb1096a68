"""The device and the precision of computation."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from nolabel.errors import UsageError, unknown

P = ParamSpec("P")
R = TypeVar("R")


def uses_cuda(device: torch.device | str) -> bool:
    """Whether `device` ("auto", "cpu", "cuda", "cuda:1", ...) means a GPU on this machine."""
    return str(device).partition(":")[0] != "cpu" and torch.cuda.is_available()


def pick_device(device: torch.device | str = "auto", *, fallback: bool = False) -> torch.device:
    """The device that a setting names.

    Args:
        device: "auto" is a GPU where there is one, and else the CPU.
        fallback: use the CPU if a GPU is named and there is none, as for a run that was trained on
            another machine.

    Raises:
        UsageError: an unknown device, or (without `fallback`) a GPU that is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if uses_cuda(device) else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        raise unknown("device", str(device), ("auto", "cpu", "cuda")) from None
    if where.type == "cuda" and not torch.cuda.is_available():
        if fallback:
            return torch.device("cpu")
        raise UsageError("No CUDA device is available here. Use --device cpu or auto.")
    return where


def autocast(precision: str, device: torch.device) -> torch.autocast | contextlib.nullcontext[None]:
    """A context for the forward pass: bfloat16 autocast for "bf16", nothing for "fp32"."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def in_fp32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: a function of tensors computes outside autocast, from tensors of at least fp32.

    For losses, distances, assignments and statistics. bfloat16 has 8 significant bits: near 1 it
    rounds a cosine to multiples of 1/256, so that the products of near-equal unit vectors tell
    nothing of their differences. Autocast would compute such products in it, whatever the type of
    the operands.
    """

    call: Callable[..., R] = function

    def widen(x: object) -> object:
        low = isinstance(x, Tensor) and x.is_floating_point() and x.element_size() < 4
        return x.float() if low else x

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        wide = [widen(a) for a in args]
        with torch.autocast(device, enabled=False):
            return call(*wide, **{k: widen(v) for k, v in kwargs.items()})

    return run


def cpu_cores() -> int:
    """CPU cores that this process may use: of a part of a machine, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

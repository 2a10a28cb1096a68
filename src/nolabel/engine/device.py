"""Where a run computes, and in which precision."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from nolabel.config import Run


def device_of(run: Run) -> torch.device:
    """The device of a run."""
    name = run.settings.device
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(precision: str, device: torch.device) -> Any:
    """bf16 autocast, or nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()

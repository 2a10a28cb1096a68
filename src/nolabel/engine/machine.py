"""The devices that a run is for, and the memory that it may plan for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

FULL_CPU = 0.5  # of the machine's memory: what is counted is up to 1.5 times as much in a process
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


@dataclass(frozen=True)
class Machine:
    """What automatic values depend on beside the data: the devices that a run is for."""

    on_gpu: bool
    processes: int  # one a device
    room: float  # bytes that each may plan for

    @classmethod
    def here(cls, device: str) -> Machine:
        """This machine and the processes that a launcher announced.

        Args:
            device: auto, cpu or cuda.
        """
        on_gpu = device != "cpu" and torch.cuda.is_available()
        return cls(on_gpu, int(os.environ.get("WORLD_SIZE", "1")), room_of(on_gpu))


def room_of(on_gpu: bool) -> float:
    """Bytes that a process may plan for: of its GPU, or its share of the machine's memory."""
    if on_gpu:
        from nolabel.engine.cost import FULL

        return FULL * torch.cuda.get_device_properties(0).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    if limit.isdigit():
        total = min(total, int(limit))
    return FULL_CPU * total / max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)

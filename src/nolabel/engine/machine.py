"""The devices of a run, and how much of their memory and of the cores it can use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from nolabel.device import cpu_cores

# Shares of the machine's memory. Together with the program's own, a run takes at most a quarter of
# it: a step takes up to 1.5 times what the cost model predicts.
USABLE_CPU_SHARE = 1 / 16  # for a step, as predicted
CACHE_SHARE = 0.13  # for decoded images
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # memory limit of a container


@dataclass(frozen=True)
class Machine:
    """The devices of a run; automatic values depend on them and on the data."""

    on_gpu: bool
    processes: int  # one a device
    usable_memory: float  # bytes a process
    cache_memory: float = 0.0  # bytes a process, for decoded images

    @classmethod
    def here(cls, device: str) -> Machine:
        """This machine and the number of processes that a launcher (torchrun) started.

        Args:
            device: auto, cpu or cuda.
        """
        on_gpu = device != "cpu" and torch.cuda.is_available()
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(on_gpu, processes, usable_memory(on_gpu), cache_memory())


def usable_memory(on_gpu: bool) -> float:
    """Bytes that a process can use: of its GPU, or its share of the machine's memory."""
    if on_gpu:
        from nolabel.engine.cost import USABLE_SHARE

        return USABLE_SHARE * torch.cuda.get_device_properties(0).total_memory
    return USABLE_CPU_SHARE * total_memory() / _processes_here()


def total_memory() -> float:
    """Bytes of memory of this machine, or of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


def cache_memory() -> float:
    """Bytes that a process may use to keep decoded images."""
    return CACHE_SHARE * total_memory() / _processes_here()


def cores() -> int:
    """CPU cores for this process: an equal share among the machine's processes."""
    return max(cpu_cores() // _processes_here(), 1)


def _processes_here() -> int:
    """Processes of the run on this machine, as the launcher says."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)

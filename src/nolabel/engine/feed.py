"""The batches of a run; a function of its settings, so that a repeated step gets the same ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from nolabel import distributed
from nolabel.config import Run
from nolabel.data.decoded import decoded_once
from nolabel.data.loader import make_loader
from nolabel.data.source import Source
from nolabel.engine.log import warn
from nolabel.engine.machine import cache_memory
from nolabel.methods.base import Method
from nolabel.types import Batch
from nolabel.views import FastViews
from nolabel.views.plan import ViewPlan


def batches_of(
    run: Run,
    method: Method,
    plan: ViewPlan,
    source: Source,
    device: torch.device,
    start: int,
    end: int,
    *,
    workers: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """This rank's micro-batches of steps start .. end - 1.

    Args:
        workers: processes that read the data; 0 reads in this process.
        stopping: whether a stop was requested.
    """
    s = run.settings
    return make_loader(
        decoded_once(source, s.cache, cache_memory(), workers=workers),
        FastViews(plan, s.seed, device=device if s.views_on == "device" else "cpu"),
        seed=s.seed,
        batch_size=s.batch_size,
        start_step=start,
        total_steps=end,
        accumulate=s.accumulate,
        rank=distributed.rank(),
        world=distributed.world_size(),
        workers=workers,
        pin=device.type == "cuda",
        with_text="text" in method.inputs,
        warn=warn,
        stopping=stopping,
    )


class TimedFeed(Iterator[Batch]):
    """Moves micro-batches to the device, and measures the time spent waiting for them.

    Args:
        batches: micro-batches on the CPU.
        device: where they are moved to.

    Attributes:
        wait: seconds waited since it was last set to 0.
        unreadable: (path, reason) of files that could not be read since it was last cleared.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device):
        self._batches, self._device = batches, device
        self.wait = 0.0
        self.unreadable: list[tuple[str, str]] = []

    def close(self) -> None:
        """Ends the data workers."""
        close = getattr(self._batches, "close", None)  # of a generator
        if close is not None:
            close()

    def __next__(self) -> Batch:
        began = time.monotonic()
        batch = next(self._batches)
        self.wait += time.monotonic() - began
        self.unreadable.extend(batch.skipped)
        return batch.to(self._device)

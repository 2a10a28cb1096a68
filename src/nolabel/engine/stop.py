"""Stop requests by signal, from the keyboard or from a cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

CLUSTER_SIGNALS = [s for s in signal.Signals if s.name in ("SIGUSR1", "SIGUSR2")]
# SLURM and a terminal signal every process, and torchrun forwards signals to its processes, so a
# process gets several copies of one request.
ONE_REQUEST = 3.0  # seconds within which signals count as one request


class StopRequest:
    """A context manager that turns signals into a request to stop after the current step.

    The signals are SIGINT, SIGTERM, and those that clusters send before a job's end (SIGUSR1,
    SIGUSR2). A second SIGINT or SIGTERM, at least `ONE_REQUEST` seconds after the first signal,
    kills the process at once.

    Attributes:
        requested: whether a signal was received.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._old: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = True, now
        elif number not in CLUSTER_SIGNALS and now - self._since >= ONE_REQUEST:
            os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not the main thread, which alone can set handlers
            for number in (signal.SIGINT, signal.SIGTERM, *CLUSTER_SIGNALS):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

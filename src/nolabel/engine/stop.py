"""A request to stop, from the keyboard or from the system."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

POLITE = [getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n)]
# SLURM and a terminal signal every process, and torchrun passes a signal on to its own: the copies
# of one request arrive within a moment.
ONE_REQUEST = 3.0  # seconds within which signals count as one request


class StopRequest:
    """Turns signals into a request to stop after the current step; used as a context.

    The signals are SIGINT, SIGTERM, and those that clusters send before a job's end (SIGUSR1,
    SIGUSR2). A second SIGINT or SIGTERM, at least `ONE_REQUEST` seconds after the first signal,
    kills the process at once.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._old: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = True, now
        elif number not in POLITE and now - self._since >= ONE_REQUEST:
            os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
            for number in (signal.SIGINT, signal.SIGTERM, *POLITE):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

"""A request to stop, from the keyboard or from the system."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

PATIENT = [getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n)]
# SLURM and a terminal tell every process, and torchrun tells its own again: within a moment.
ONE_REQUEST = 3.0  # seconds


class StopRequest:
    """SIGINT and SIGTERM, and what clusters send (SIGUSR1, SIGUSR2), become a request to stop at
    the next step; another SIGINT or SIGTERM, `ONE_REQUEST` seconds after the first or later, is
    immediate."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = True, now
        elif number not in PATIENT and now - self._since >= ONE_REQUEST:
            os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
            for number in (signal.SIGINT, signal.SIGTERM, *PATIENT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

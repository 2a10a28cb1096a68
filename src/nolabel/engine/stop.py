"""A request to stop, from the keyboard or from the system."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

PATIENT = [getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n)]


class StopRequest:
    """SIGINT and SIGTERM, and what clusters send (SIGUSR1, SIGUSR2), become a request to stop at
    the next step; a second SIGINT or SIGTERM is immediate."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number not in PATIENT:
            os.kill(os.getpid(), signal.SIGKILL)
        self.requested = True

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not in the main thread: nothing to catch
            for number in (signal.SIGINT, signal.SIGTERM, *PATIENT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *args: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

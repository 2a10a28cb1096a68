"""Names the processes that the others wait for when a step does not end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from nolabel import distributed
from nolabel.engine.parallel import TIMEOUT

SILENCE = 60.0  # seconds without progress after which the late processes are looked for


class Heartbeat:
    """A watch over the progress of all processes; does nothing in a single one.

    Each process writes its step into the process group's store. A process that makes no progress
    for a while reads the steps of the others, and reports those that are behind and how long ago
    they were heard of, once a step.

    Used as a context; it must be entered in all processes.

    Args:
        report: takes the report, a sentence for the user.
        silence: seconds without progress after which the late processes are looked for.
    """

    def __init__(self, report: Callable[[str], None], silence: float = SILENCE):
        self.report, self.silence = report, silence
        self.step, self.time = -1.0, 0.0
        self._ended = threading.Event()
        self._store: dist.Store | None = None

    def __enter__(self) -> Heartbeat:
        if distributed.world_size() > 1:
            default = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore("heartbeat", default)
            self.beat(0)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()  # no more steps are expected

    def beat(self, step: float) -> None:
        """Records this process's progress: its step, with the share of the step that is done."""
        if self._store is not None:
            self.step, self.time = step, time.time()
            self._store.set(str(distributed.rank()), f"{step} {self.time} {os.uname().nodename}")

    def _watch(self) -> None:
        reported = -1.0
        while not self._ended.wait(self.silence / 4):
            if time.time() - self.time > self.silence and reported != self.step:
                reported = self.step
                try:
                    late = ", ".join(self.late()) or "one that hangs within the step: all began it"
                except RuntimeError:  # the process group was destroyed
                    return
                self.report(
                    f"Waiting at step {int(self.step)} for {late}. If it does not come back, the "
                    f"run ends {TIMEOUT.seconds // 60} minutes after it was missed; `nolabel "
                    "resume` goes on from the last checkpoint."
                )

    def late(self) -> list[str]:
        """The processes whose step is behind this one's, described."""
        out: list[str] = []
        if self._store is None:
            return out
        for rank in range(distributed.world_size()):
            if not self._store.check([str(rank)]):
                out.append(f"process {rank} (never heard of)")
                continue
            step, at, host = self._store.get(str(rank)).decode().split(" ", 2)
            if float(step) < self.step:
                ago = time.time() - float(at)
                out.append(f"process {rank} on {host} (at step {int(float(step))} for {ago:.0f} s)")
        return out

"""Reports which ranks the others wait for when a step hangs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from nolabel import distributed
from nolabel.engine.parallel import TIMEOUT

SILENCE = 60.0  # seconds without progress until late ranks are reported


class Heartbeat:
    """Watches the progress of all ranks; does nothing in a single process.

    Each rank writes its step into the process group's store. A rank that makes no progress for
    `silence` seconds reads the steps of the others, and reports those that are behind and the time
    since their last progress, at most once a step.

    A context manager; all ranks must enter it.

    Args:
        report: called with a sentence for the user.
        silence: seconds without progress until late ranks are reported.
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
        """Records this rank's progress: its step plus the share of the step that is done."""
        if self._store is not None:
            self.step, self.time = step, time.time()
            self._store.set(str(distributed.rank()), f"{step} {self.time} {os.uname().nodename}")

    def _watch(self) -> None:
        reported = -1.0
        while not self._ended.wait(self.silence / 4):
            if time.time() - self.time > self.silence and reported != self.step:
                reported = self.step
                try:
                    late = (
                        ", ".join(self.late())
                        or "a process that hangs inside the step (all have started it)"
                    )
                except RuntimeError:  # the process group was destroyed
                    return
                self.report(
                    f"Waiting at step {int(self.step)} for {late}. If it does not come back, the "
                    f"run ends {TIMEOUT.seconds // 60} minutes after it was missed; `nolabel "
                    "resume` goes on from the last checkpoint."
                )

    def late(self) -> list[str]:
        """Descriptions of the ranks whose step is behind this one's."""
        out: list[str] = []
        if self._store is None:
            return out
        for rank in range(distributed.world_size()):
            if not self._store.check([str(rank)]):
                out.append(f"process {rank} (not started)")
                continue
            step, at, host = self._store.get(str(rank)).decode().split(" ", 2)
            if float(step) < self.step:
                ago = time.time() - float(at)
                out.append(f"process {rank} on {host} (at step {int(float(step))} for {ago:.0f} s)")
        return out

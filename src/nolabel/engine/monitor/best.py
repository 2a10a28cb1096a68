"""Keeps the encoder of the best moment of a run (`--keep best`).

Moments are compared by the k-NN of `--probe`, else by self-retrieval, which needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.engine import run_folder
from nolabel.engine.monitor.probe import self_retrieval
from nolabel.methods.base import Method
from nolabel.views.plan import ViewPlan


class Best:
    """The best encoder so far.

    Args:
        run, method, plan, source: of the run.
    """

    def __init__(self, run: Run, method: Method, plan: ViewPlan, source: Source):
        self.run, self.method, self.plan, self.source = run, method, plan, source
        self.key = "probe_knn" if run.settings.probe else "self_retrieval"
        self.step, self.value, self.last = 0, -1.0, -1.0

    def recall(self, line: Mapping[str, Any]) -> None:
        """Takes a line of the metrics of an earlier part of the run."""
        value = line.get(self.key)
        if isinstance(value, int | float) and value > self.value:
            self.step, self.value = int(line["step"]), float(value)

    def update(self, line: dict[str, Any], note: Callable[[str], Any]) -> None:
        """Measures the encoder if no probe did, and saves it if it is the best.

        Args:
            line: of the metrics; `self_retrieval` is added.
            note: prints a line if it cannot be saved; training continues.
        """
        if self.key not in line:
            line[self.key] = self._measure()
        self.last = float(line[self.key])
        if self.last <= self.value:
            return
        try:
            run_folder.export(self.run, self.method, self.plan, self.run.folder / run_folder.BEST)
        except OSError as error:
            note(f"The best encoder so far could not be saved: {error}")
            return
        self.step, self.value = int(line["step"]), self.last

    def _measure(self) -> float:
        encoder = Encoder(
            self.method.encoder, mean=self.plan.mean, std=self.plan.std,
            image_size=self.run.settings.image_size,
        )  # fmt: skip
        return self_retrieval(encoder, self.source)

    def take(self, total: int, note: Callable[[str], Any]) -> None:
        """Puts the best encoder in the place of the last one, and says so.

        Args:
            total: steps of the run.
            note: prints a line.
        """
        if not 0 < self.step < total:
            return
        run_folder.keep_best(self.run)
        note(
            f"kept: the encoder of step {self.step} ({self.key.replace('_', ' ')} "
            f"{self.value:.1%}; the last has {self.last:.1%})"
        )

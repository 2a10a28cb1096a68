"""Trial steps on a copy of the method, to measure what cannot be predicted.

Whether bf16 is faster on this machine, whether data loading needs worker processes, whether the
batch fits without micro-batches, and how long a step takes. `engine.measurement` decides by it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nolabel import distributed, methods
from nolabel.config import Run
from nolabel.data.loader import make_loader
from nolabel.data.source import Source
from nolabel.device import autocast
from nolabel.engine import memory
from nolabel.engine.optimiser import build_optimiser, gradient_norm
from nolabel.engine.step import apply_update
from nolabel.methods.base import Method
from nolabel.nn.random_state import preserve_rng
from nolabel.types import Batch, Clock
from nolabel.views import FastViews
from nolabel.views.plan import ViewPlan

# Trial steps for each precision: fewer when they are slow, so that training starts soon.
MIN_STEPS, MAX_STEPS = 2, 5
MAX_SECONDS = 2.0


@dataclass(frozen=True)
class Measured:
    """What the trial steps measured."""

    batch: Batch  # a micro-batch, on the device
    data: float  # seconds to read a micro-batch and make its views
    times: dict[str, float]  # precision -> seconds of a micro-batch's step
    accumulate: int  # micro-batches of a step

    @property
    def step(self) -> float:
        """Seconds of a step at the faster precision."""
        return min(self.times.values())


def measure(
    run: Run,
    method: Method,
    plan: ViewPlan,
    source: Source,
    device: torch.device,
    *,
    precisions: Sequence[str],
    may_split: bool = False,
) -> Measured:
    """Loads three micro-batches and takes a few steps in each precision, on a copy of the method.

    Args:
        run: resolved, except for the settings that are measured.
        method: on the device; it is not changed.
        plan: of the run's views.
        source: the training data.
        device: on which steps are taken.
        precisions: fp32, bf16 or both; bf16 is left out on a GPU without it.
        may_split: whether to double the number of micro-batches when memory runs out, until a step
            fits or the batch cannot be divided further.
    """
    micro_batches, batch_size = run.settings.accumulate, run.settings.batch_size
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        precisions = [p for p in precisions if p != "bf16"]
    trial = copy.deepcopy(method).train()
    while True:
        try:
            batches = _batches(run, plan, source, micro_batches)
            batch = batches[0][0].to(device)
            times = {p: _step_seconds(run, trial, batch, p, device) for p in precisions}
            data = min(seconds for _, seconds in batches)
            return Measured(batch, data, times, micro_batches)
        except RuntimeError as error:
            divides = batch_size % (2 * micro_batches * distributed.world_size()) == 0
            if not memory.ran_out(error) or not may_split or not divides:
                raise
        micro_batches *= 2


def _batches(run: Run, plan: ViewPlan, source: Source, accumulate: int
             ) -> list[tuple[Batch, float]]:  # fmt: skip
    """The first three micro-batches, each with the seconds that loading it took."""
    s = run.settings
    loader = make_loader(
        source, FastViews(plan, s.seed, device="cpu"), seed=s.seed,
        batch_size=s.batch_size, start_step=0, total_steps=3, accumulate=accumulate,
        rank=distributed.rank(), world=distributed.world_size(),
        with_text="text" in methods.load(run.method).inputs,
    )  # fmt: skip
    out, started = [], time.perf_counter()
    for batch in loader:
        out.append((batch, time.perf_counter() - started))
        started = time.perf_counter()
        if len(out) == 3:
            break
    return out


def _step_seconds(
    run: Run, trial: Method, batch: Batch, precision: str, device: torch.device
) -> float:
    """Median seconds of a step on one micro-batch, with the update, on a copy of the method."""
    optimiser = build_optimiser(trial, run.optim)
    optimiser.zero_grad(set_to_none=True)  # gradients of a step that ran out of memory
    epoch = max(run.steps_per_epoch, 1)
    clock = Clock(0, max(1000, 2 * epoch), epoch)  # the length need not be known yet
    parameters = [p for p in trial.parameters() if p.requires_grad]
    times = []
    with preserve_rng():
        # All ranks must take the same number of steps: each has collectives.
        single = distributed.world_size() == 1
        while len(times) < MIN_STEPS or (
            single and len(times) < MAX_STEPS and sum(times) < MAX_SECONDS
        ):
            started = time.perf_counter()
            with autocast(precision, device):
                loss = trial.step(batch, clock).loss
            loss.backward()
            gradient_norm(parameters)
            apply_update(trial, optimiser, run.optim, clock)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # without the first, which fills caches

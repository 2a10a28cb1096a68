"""A few steps on a copy of the method, for what can only be known by trying.

Is bf16 faster here, do the data need workers of their own, does a batch fit at once, how long does
a step take? `engine.resolve.measurement` decides by it.
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

# Steps of a precision: up to five, fewer when they are slow, as nobody likes to wait for a start.
ENOUGH = 2
PATIENCE = 2.0  # seconds


@dataclass(frozen=True)
class Measured:
    """What a few steps took."""

    batch: Batch  # one of them, on the device
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
    may_cut: bool = False,
) -> Measured:
    """Reads three micro-batches and takes a few steps a precision, on one copy of the method.

    Args:
        run: resolved but for what is measured.
        method: on the device; it stays as it is.
        plan: of the run's views.
        source: of the data.
        device: on which steps are taken.
        precisions: fp32, bf16 or both; bf16 is left out on a GPU that has none.
        may_cut: whether, when memory runs out, there may be twice as many micro-batches, until a
            step fits or cannot be cut any more.
    """
    parts, batch_size = run.settings.accumulate, run.settings.batch_size
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        precisions = [p for p in precisions if p != "bf16"]
    trial = copy.deepcopy(method).train()  # thrown away
    while True:
        try:
            batches = _batches(run, plan, source, parts)
            batch = batches[0][0].to(device)
            times = {p: _step_seconds(run, trial, batch, p, device) for p in precisions}
            return Measured(batch, min(seconds for _, seconds in batches), times, parts)
        except RuntimeError as error:
            divides = batch_size % (2 * parts * distributed.world_size()) == 0
            if not memory.ran_out(error) or not may_cut or not divides:
                raise
        parts *= 2


def _batches(run: Run, plan: ViewPlan, source: Source, parts: int) -> list[tuple[Batch, float]]:
    """The first micro-batches with the seconds that each took to make."""
    s = run.settings
    loader = make_loader(
        source, FastViews(plan, s.seed, device="cpu"), seed=s.seed,
        batch_size=s.batch_size, start_step=0, total_steps=3, accumulate=parts,
        rank=distributed.rank(), world=distributed.world_size(),
        with_text="text" in methods.load(run.method).inputs,
    )  # fmt: skip
    out, tick = [], time.perf_counter()
    for batch in loader:
        out.append((batch, time.perf_counter() - tick))
        tick = time.perf_counter()
        if len(out) == 3:
            break
    return out


def _step_seconds(
    run: Run, trial: Method, batch: Batch, precision: str, device: torch.device
) -> float:
    """Seconds of one micro-batch, update included, on a copy that is thrown away."""
    optimiser = build_optimiser(trial, run.optim)
    optimiser.zero_grad(set_to_none=True)  # what a step left that ran out of memory
    clock = Clock(0, 1000, max(run.steps_per_epoch, 1))
    parameters = [p for p in trial.parameters() if p.requires_grad]
    times = []
    with preserve_rng():
        # Several processes must take the same number of steps, for they wait for each other.
        alone = distributed.world_size() == 1
        while len(times) < ENOUGH or (alone and len(times) < 5 and sum(times) < PATIENCE):
            tick = time.perf_counter()
            with autocast(precision, device):
                loss = trial.step(batch, clock).loss
            loss.backward()
            gradient_norm(parameters)
            apply_update(trial, optimiser, run.optim, clock)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - tick)
    return statistics.median(times[1:])  # the first also fills caches

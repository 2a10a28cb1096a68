"""What can only be known by trying: is bf16 faster here, do data need workers of their own, and how
many steps fit into M minutes."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from dataclasses import dataclass

import torch

from nolabel import distributed, methods
from nolabel.config import Run, Settings, with_length
from nolabel.data.loader import make_loader
from nolabel.data.source import Source
from nolabel.device import autocast
from nolabel.engine import memory, parallel
from nolabel.engine.log import say
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


def resolve(
    run: Run,
    method: Method,
    plan: ViewPlan,
    source: Source,
    device: torch.device,
    *,
    quiet: bool = False,
) -> Run:
    """Replaces `precision`, `workers` and `minutes` by what a few steps on a copy measured."""
    s = run.settings
    known = s.views_on != "auto" or device.type == "cpu"
    if s.precision != "auto" and s.steps is not None and s.workers is not None and known:
        s = dataclasses.replace(s, accumulate=s.accumulate or 1)
        return dataclasses.replace(run, settings=_views_on(s, device, 0, 1))
    measured = measure(run, method, plan, source, device)
    data, times = measured.data, measured.times
    if measured.accumulate != (s.accumulate or 1) and not quiet:
        say(
            f"memory: a batch of {s.batch_size} does not fit at once; it is taken in "
            f"{measured.accumulate} micro-batches"
        )
    s = dataclasses.replace(s, accumulate=measured.accumulate)
    best = min(times, key=lambda k: times[k])
    if not quiet and len(times) > 1:
        shown = ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in times.items())
        say(f"precision: {best} (a step takes {shown})")
    s = dataclasses.replace(s, precision=best)
    if s.workers is None:
        s = dataclasses.replace(s, workers=_workers(data, times[best], device))
        if not quiet and s.workers == 0:
            shown = f"{data * 1e3:.0f} ms of data to {times[best] * 1e3:.0f} ms of training"
            say(f"workers: 0 ({shown} a step; they would take the cores from each other)")
    s = _views_on(s, device, data, times[best])
    run = dataclasses.replace(run, settings=s)
    if s.steps is None and s.minutes is not None:
        # Workers read while a GPU computes; on the CPU both need the same cores, so times add up.
        apart = s.workers and device.type != "cpu"
        seconds = measured.accumulate * (max(times[best], data) if apart else times[best] + data)
        steps = max(int(s.minutes * 60 / seconds), 1)
        run = with_length(run, steps)
        if not quiet:
            say(f"length: {steps} steps in {s.minutes:g} min ({seconds * 1e3:.0f} ms a step)")
    return run


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
    run: Run, method: Method, plan: ViewPlan, source: Source, device: torch.device
) -> Measured:
    """Reads three micro-batches and takes a few steps a precision, on a copy of the method.

    Where the number of micro-batches is left open and memory runs out, there are twice as many,
    until a step fits or cannot be cut any more.
    """
    s = run.settings
    parts = int(s.accumulate or 1)
    while True:
        try:
            return _measure(with_parts(run, parts), method, plan, source, device)
        except RuntimeError as error:
            cut = int(s.batch_size or 1) % (2 * parts * distributed.world_size()) == 0
            if not memory.ran_out(error) or s.accumulate is not None or not cut:
                raise
        parts *= 2


def with_parts(run: Run, parts: int) -> Run:
    """The run with its number of micro-batches."""
    return dataclasses.replace(run, settings=dataclasses.replace(run.settings, accumulate=parts))


def _measure(
    run: Run, method: Method, plan: ViewPlan, source: Source, device: torch.device
) -> Measured:
    s = run.settings
    batches = _batches(run, plan, source)
    batch = batches[0][0].to(device)
    times: dict[str, float] = {}
    for precision in ("fp32", "bf16") if s.precision == "auto" else (s.precision,):
        if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            continue
        times[precision] = _step_seconds(run, method, batch, precision, device)
    least = min(seconds for _, seconds in batches)
    return Measured(batch, least, times, int(s.accumulate or 1))


def _workers(data: float, step: float, device: torch.device) -> int:
    """Processes that read data: one a core, at most sixteen; none if that is faster.

    Training on the CPU uses all cores itself. Workers beside it interrupt its threads, which wait
    for each other, and cost more than they bring until reading takes about half of a step.
    """
    if device.type == "cpu" and data < step / 2:
        return 0
    return min(parallel.cores(), 16)


def _views_on(s: Settings, device: torch.device, data: float, step: float) -> Settings:
    """Where views are made: on a GPU when the cores together cannot keep up with it."""
    if s.views_on == "auto":
        slow = device.type != "cpu" and data / max(int(s.workers or 0), 1) > step
        s = dataclasses.replace(s, views_on="device" if slow else "cpu")
    return s


def _batches(run: Run, plan: ViewPlan, source: Source) -> list[tuple[Batch, float]]:
    """The first micro-batches with the seconds that each took to make."""
    s = run.settings
    loader = make_loader(
        source, FastViews(plan, s.seed, device="cpu"), seed=s.seed,
        batch_size=int(s.batch_size or 1), start_step=0, total_steps=3,
        accumulate=int(s.accumulate or 1),
        rank=distributed.rank(), world=distributed.world_size(),
        with_text=methods.load(run.method).wants_text,
    )  # fmt: skip
    out, tick = [], time.perf_counter()
    for batch in loader:
        out.append((batch, time.perf_counter() - tick))
        tick = time.perf_counter()
        if len(out) == 3:
            break
    return out


def _step_seconds(
    run: Run, method: Method, batch: Batch, precision: str, device: torch.device
) -> float:
    """Seconds of one micro-batch, update included, on a copy that is thrown away."""
    trial = copy.deepcopy(method).train()
    optimiser = build_optimiser(trial, run.optim)
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

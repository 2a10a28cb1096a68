"""The last stage of resolving a run: what only a few steps on a copy of the method can tell."""

from __future__ import annotations

import dataclasses

import torch

from nolabel.config import Run, Settings, complete
from nolabel.engine import parallel
from nolabel.engine.calibrate import Measured, measure
from nolabel.engine.log import say
from nolabel.engine.resolve import Resolved, limited_warmup
from nolabel.methods.base import Method
from nolabel.views.plan import ViewPlan


def measurement(
    resolved: Resolved,
    method: Method,
    plan: ViewPlan,
    device: torch.device,
    *,
    quiet: bool = False,
) -> Run:
    """The last stage: the run with everything settled, by a few steps on a copy where needed.

    Args:
        resolved: by the other stages.
        method: built for it, on the device; it stays as it is.
        plan: of its views.
        device: on which it trains.
        quiet: say nothing.

    Returns:
        The final run, the same on all processes.
    """
    run, s = resolved.run, resolved.settings
    if resolved.open:
        precisions = ("fp32", "bf16") if s.precision == "auto" else (s.precision,)
        measured = measure(
            run, method, plan, resolved.source, device,
            precisions=precisions, may_cut=s.accumulate is None,
        )  # fmt: skip
        s = _measured_settings(s, measured, device, quiet)
        if s.steps is None and s.minutes is not None:
            s = _length(s, measured, device, quiet)
            run = dataclasses.replace(
                run, optim=limited_warmup(run.optim, s, s.steps or 1, run.steps_per_epoch)
            )
    settings = complete(s, continued=method.continued)
    if settings.warm_heads and s.warm_heads is None and not quiet:
        say(f"init: the new heads alone learn in the first {settings.warm_heads} steps")
    # One measurement for all processes.
    return parallel.broadcast_object(dataclasses.replace(run, settings=settings))


def _measured_settings(
    s: Settings, measured: Measured, device: torch.device, quiet: bool
) -> Settings:
    """Micro-batches, precision, workers and place of the views by what a few steps took."""
    times, data = measured.times, measured.data
    if measured.accumulate != (s.accumulate or 1) and not quiet:
        say(
            f"memory: a batch of {s.batch_size} does not fit at once; it is taken in "
            f"{measured.accumulate} micro-batches"
        )
    best = min(times, key=lambda k: times[k])
    if not quiet and len(times) > 1:
        shown = ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in times.items())
        say(f"precision: {best} (a step takes {shown})")
    workers = s.workers
    if workers is None:
        workers = worker_count(data, times[best], device)
        if not quiet and workers == 0:
            shown = f"{data * 1e3:.0f} ms of data to {times[best] * 1e3:.0f} ms of training"
            say(f"workers: 0 ({shown} a step; they would take the cores from each other)")
    views_on = s.views_on
    if views_on == "auto":
        views_on = where_views_are_made(workers, device, data, times[best])
    return dataclasses.replace(
        s, accumulate=measured.accumulate, precision=best, workers=workers, views_on=views_on
    )


def _length(s: Settings, measured: Measured, device: torch.device, quiet: bool) -> Settings:
    """The number of steps that fit into the minutes."""
    step, data, minutes = measured.times[s.precision], measured.data, s.minutes or 0.0
    # Workers read while a GPU computes; on the CPU both need the same cores, so times add up.
    apart = s.workers and device.type != "cpu"
    seconds = measured.accumulate * (max(step, data) if apart else step + data)
    steps = max(int(minutes * 60 / seconds), 1)
    if not quiet:
        say(f"length: {steps} steps in {minutes:g} min ({seconds * 1e3:.0f} ms a step)")
    return dataclasses.replace(s, steps=steps)


def worker_count(data: float, step: float, device: torch.device) -> int:
    """Processes that read data: one a core, at most sixteen; none if that is faster.

    Training on the CPU uses all cores itself. Workers beside it interrupt its threads, which wait
    for each other, and cost more than they bring until reading takes about half of a step.

    Args:
        data: seconds to read a micro-batch and make its views.
        step: seconds of its step.
        device: on which it is trained.
    """
    if device.type == "cpu" and data < step / 2:
        return 0
    return min(parallel.cores(), 16)


def where_views_are_made(workers: int, device: torch.device, data: float, step: float) -> str:
    """cpu, or device: a GPU makes them when the cores together cannot keep up with it."""
    slow = device.type != "cpu" and data / max(workers, 1) > step
    return "device" if slow else "cpu"

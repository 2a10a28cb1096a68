"""The last stage of resolving a run: settings that are measured with trial steps."""

from __future__ import annotations

import dataclasses
import time

import torch

from nolabel.config import Run, Settings, complete
from nolabel.data.progress import phase
from nolabel.engine import parallel
from nolabel.engine.calibrate import Measured, measure
from nolabel.engine.length import RESERVE
from nolabel.engine.log import say
from nolabel.engine.machine import cores, usable_memory
from nolabel.engine.resolve import Resolved
from nolabel.methods.base import Method
from nolabel.views.plan import ViewPlan


def measurement(
    resolved: Resolved,
    method: Method,
    plan: ViewPlan,
    device: torch.device,
    *,
    began: float | None = None,
    quiet: bool = False,
) -> Run:
    """Fills in the settings that are still open, with trial steps on a copy of the method.

    Args:
        resolved: by the other stages.
        method: of the run, on the device; it is not changed.
        plan: of its views.
        device: on which it trains.
        began: time.monotonic() from which `minutes` count; None: now.
        quiet: print nothing.

    Returns:
        The final run, equal on all ranks.
    """
    run, s = resolved.run, resolved.settings
    if resolved.open:
        precisions = ("fp32", "bf16") if s.precision == "auto" else (s.precision,)
        with phase("measuring training steps"):
            measured = measure(
                run, method, plan, resolved.source, device,
                precisions=precisions, may_split=s.accumulate is None,
                memory_limit=usable_memory(on_gpu=False),
            )  # fmt: skip
        s = _measured_settings(s, measured, device, quiet)
        if s.steps is None and s.minutes is not None:
            s = _length(s, measured, device, quiet, began)
            run = resolved.at_length(s.steps or 1)
    settings = complete(s, continued=method.continued)
    if settings.warm_heads and s.warm_heads is None and not quiet:
        say(f"init: only the new heads are trained in the first {settings.warm_heads} steps")
    # Each rank measured other times: all take those of rank 0.
    return parallel.broadcast_object(dataclasses.replace(run, settings=settings))


def _measured_settings(
    s: Settings, measured: Measured, device: torch.device, quiet: bool
) -> Settings:
    """Micro-batches, precision, workers and device of the views, by the measured times."""
    times, data = measured.times, measured.data
    if measured.accumulate != (s.accumulate or 1) and not quiet:
        say(
            f"memory: a batch of {s.batch_size} does not fit; it is split into "
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
            shown = (
                f"{data * 1e3:.0f} ms of loading and {times[best] * 1e3:.0f} ms of training a step"
            )
            say(f"workers: 0 ({shown}; workers would compete with training for the cores)")
    views_on = s.views_on
    if views_on == "auto":
        views_on = views_device(workers, device, data, times[best])
    return dataclasses.replace(
        s, accumulate=measured.accumulate, precision=best, workers=workers, views_on=views_on
    )


def _length(
    s: Settings, measured: Measured, device: torch.device, quiet: bool, began: float | None
) -> Settings:
    """Sets the number of steps that fit into what is left of `minutes`."""
    step, data, minutes = measured.times[s.precision], measured.data, s.minutes or 0.0
    # Workers load data while a GPU computes; on the CPU both need the cores, so times add up.
    overlap = s.workers and device.type != "cpu"
    seconds = measured.accumulate * (max(step, data) if overlap else step + data)
    spent = 0.0 if began is None else time.monotonic() - began
    steps = max(int((minutes * 60 - spent - RESERVE) / seconds), 1)
    if not quiet:
        say(
            f"length: about {steps:,} steps in {minutes:g} min ({seconds * 1e3:.0f} ms a step; "
            "corrected as it goes)"
        )
    return dataclasses.replace(s, steps=steps)


def worker_count(data: float, step: float, device: torch.device) -> int:
    """Number of data loading workers: one for each core, at most 16; none where that is faster.

    Training on the CPU uses all cores, and its threads synchronise often: workers slow it down
    until loading takes about half as long as a step.

    Args:
        data: seconds to load a micro-batch and make its views.
        step: seconds of its training step.
        device: on which it is trained.
    """
    if device.type == "cpu" and data < step / 2:
        return 0
    return min(cores(), 16)


def views_device(workers: int, device: torch.device, data: float, step: float) -> str:
    """Where views are made: "cpu", or "device" if all workers together are slower than the GPU."""
    slow = device.type != "cpu" and data / max(workers, 1) > step
    return "device" if slow else "cpu"

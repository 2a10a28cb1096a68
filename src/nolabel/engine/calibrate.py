"""Trial steps on a copy of the method, to measure what cannot be predicted.

Whether bf16 is faster on this machine, whether data loading needs worker processes, whether the
batch fits without micro-batches, and how long a step takes. `engine.measurement` decides by it.

On a CPU a step of a whole batch can take a minute. There the steps are taken on two small batches,
and their times extrapolated: seconds = fixed + images * seconds per image. The memory of a whole
batch is predicted as well. On a GPU whole batches are tried: they take milliseconds, and small ones
would not fill the device.
"""

from __future__ import annotations

import copy
import math
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
from nolabel.engine import cost, memory, parallel
from nolabel.engine.optimiser import build_optimiser, gradient_norm
from nolabel.engine.step import apply_update
from nolabel.methods.base import Method
from nolabel.nn.random_state import preserve_rng
from nolabel.types import Batch, Clock
from nolabel.views import FastViews
from nolabel.views.plan import ViewPlan

# Trial steps for each precision: fewer when they are slow, so that training starts soon.
MIN_STEPS, MAX_STEPS = 2, 5
MAX_SECONDS = 1.0
FEW, MORE = 8, 32  # images of the small batches that are tried on a CPU
SLOW_STEP = 1.5  # seconds of a step of FEW images from which MORE are not tried


@dataclass(frozen=True)
class Measured:
    """What the trial steps measured."""

    batch: Batch  # some images, on the device
    data: float  # seconds to read a micro-batch and make its views
    times: dict[str, float]  # precision -> seconds of a micro-batch's step
    accumulate: int  # micro-batches of a step


def measure(
    run: Run,
    method: Method,
    plan: ViewPlan,
    source: Source,
    device: torch.device,
    *,
    precisions: Sequence[str],
    may_split: bool = False,
    memory_limit: float = math.inf,
    whole: bool = False,
    seconds: float = MAX_SECONDS,
) -> Measured:
    """Loads some images and takes a few steps in each precision, on a copy of the method.

    Args:
        run: resolved, except for the settings that are measured.
        method: on the device; it is not changed.
        plan: of the run's views.
        source: the training data.
        device: on which steps are taken.
        precisions: fp32, bf16 or both; bf16 is left out on a GPU without it.
        may_split: whether to double the number of micro-batches when memory runs out, until a step
            fits or the batch cannot be divided further.
        memory_limit: bytes that a step may take, for `may_split` on a CPU.
        whole: take steps of whole micro-batches on a CPU, too.
        seconds: further trial steps are taken until they took so long together.
    """
    world, batch_size = distributed.world_size(), run.settings.batch_size
    micro_batches = run.settings.accumulate
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        precisions = [p for p in precisions if p != "bf16"]
    trial = copy.deepcopy(method).train()
    whole = whole or device.type == "cuda"
    while True:
        images = batch_size // (world * micro_batches)
        sizes = (images,) if whole else tuple(sorted({min(FEW, images), min(MORE, images)}))
        divides = batch_size % (2 * micro_batches * world) == 0
        try:
            batch, data = _some_images(run, plan, source, sizes[-1] * world)
            batch = batch.to(device)
            if may_split and not whole and math.isfinite(memory_limit):
                while divides and _memory(trial, run, batch, images) > memory_limit:
                    micro_batches, images = 2 * micro_batches, images // 2
                    divides = batch_size % (2 * micro_batches * world) == 0
            times = {
                p: _seconds(run, trial, batch, sizes, images, p, device, seconds)
                for p in precisions
            }
            return Measured(batch, data * images, times, micro_batches)
        except RuntimeError as error:
            if not memory.ran_out(error) or not may_split or not divides:
                raise
        micro_batches *= 2


def _memory(method: Method, run: Run, batch: Batch, images: int) -> float:
    """Bytes that a step of so many images takes, predicted."""
    activations = cost.extrapolated_activations(method, batch, images)
    needed = cost.method_memory(method, run.optim) + activations
    return parallel.broadcast_object(needed)  # all ranks split alike


def _seconds(
    run: Run, trial: Method, batch: Batch, sizes: tuple[int, ...], images: int, precision: str,
    device: torch.device, limit: float,
) -> float:  # fmt: skip
    """Seconds of a step of so many images, extrapolated from those of batches of `sizes`."""
    few, more = sizes[0], sizes[-1]
    small = _step_seconds(run, trial, cost.first(batch, few), precision, device, limit)
    if few == more or small > SLOW_STEP:
        return small * images / few
    large = _step_seconds(run, trial, batch, precision, device, limit)
    # Noise must not make the fixed part negative, nor more than half of the larger step.
    per_image = min(max((large - small) / (more - few), large / more / 2), large / more)
    return large + per_image * (images - more)


def _some_images(run: Run, plan: ViewPlan, source: Source, count: int) -> tuple[Batch, float]:
    """A batch of `count` images over all ranks, and the seconds that an image of it took to load.

    The faster of two batches counts; the first one imports and opens what is needed.
    """
    loader = make_loader(
        source, FastViews(plan, run.settings.seed, device="cpu"), seed=run.settings.seed,
        batch_size=count, start_step=0, total_steps=2, rank=distributed.rank(),
        world=distributed.world_size(), with_text="text" in methods.load(run.method).inputs,
    )  # fmt: skip
    times: list[float] = []
    while True:
        started = time.perf_counter()
        batch = next(loader)
        times.append(time.perf_counter() - started)
        if len(times) == 2 or times[0] > SLOW_STEP:
            return batch, min(times) / batch.size


def _step_seconds(
    run: Run, trial: Method, batch: Batch, precision: str, device: torch.device,
    limit: float = MAX_SECONDS,
) -> float:  # fmt: skip
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
        while len(times) < MIN_STEPS or (single and len(times) < MAX_STEPS and sum(times) < limit):
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

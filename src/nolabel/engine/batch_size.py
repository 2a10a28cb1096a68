"""`--batch-size auto`: the largest batch that fits into memory, predicted before training."""

from __future__ import annotations

from collections.abc import Callable

from nolabel import methods
from nolabel.config import Run
from nolabel.engine.cost import extrapolated, memory_of
from nolabel.engine.log import say
from nolabel.engine.machine import Machine
from nolabel.errors import OutOfMemory

MIN_STEPS_PER_EPOCH = 8  # larger batches would leave hardly any steps on small data


def largest_batch(run: Run, paper: int, machine: Machine, *, quiet: bool = False) -> int:
    """Largest batch size that fits, predicted with the cost model of `nolabel plan`.

    The micro-batch of a device is the largest power of two that fits. The batch is at most the
    paper's, and at most an eighth of the data. Only values that are equal on all ranks are used, so
    that the ranks agree: total memory, not free memory. If less is free, the trial steps before
    training (`engine.calibrate`) split the batch into more micro-batches.

    Args:
        run: resolved, with any batch size.
        paper: batch size of the paper's recipe, in images.
        machine: the devices that train it.
        quiet: print nothing.

    Returns:
        The batch size in images, over all devices and micro-batches.

    Raises:
        OutOfMemory: one image a device does not fit.
    """
    s, method_class = run.settings, methods.load(run.method)
    processes, budget = machine.processes, machine.usable_memory
    micro_batches = processes * s.accumulate  # of a step, over all devices
    limit = max(min(paper, run.images // MIN_STEPS_PER_EPOCH), micro_batches)

    def needed(images: int) -> float:
        counts = extrapolated(
            method_class, run.options, s.backbone, s.image_size, s.patch_size, s.precision, images,
            checkpoint_activations=s.checkpoint_activations,
        )  # fmt: skip
        shards = processes if s.shard else 1
        memory = memory_of(counts, run.optim, shards=shards, by_layer=s.shard_layers)
        return sum(memory.values())

    size = largest_power(needed, budget, limit // micro_batches)
    if needed(size) > budget:
        raise OutOfMemory(
            f"One image on each device needs {needed(size) / 1e9:,.1f} GB; {budget / 1e9:,.1f} GB "
            "can be used. Use --checkpoint-activations, a smaller --backbone or --image-size."
        )
    batch_size = micro_batches * size
    if not quiet:
        why = "a larger batch does not fit" if batch_size * 2 <= limit else (
            f"limit: the paper's batch of {paper:,}" if paper < 2 * batch_size
            else f"limit: an eighth of {run.images:,} images"
        )  # fmt: skip
        say(
            f"batch size: {batch_size:,}, {needed(size) / 1e9:,.2f} of {budget / 1e9:,.1f} GB a "
            f"device ({why})"
        )
    return batch_size


def largest_power(needed: Callable[[int], float], budget: float, limit: int) -> int:
    """The largest power of two of images, at most `limit`, that needs no more than `budget` bytes;
    1 if even two images do not fit."""
    size = 1
    while size * 2 <= limit and needed(size * 2) <= budget:
        size *= 2
    return size

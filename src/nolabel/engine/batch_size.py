"""`--batch-size auto`: the largest batch that the devices hold, known before training."""

from __future__ import annotations

from collections.abc import Callable

from nolabel import methods
from nolabel.config import Run
from nolabel.engine.cost import extrapolated, memory_of
from nolabel.engine.log import say
from nolabel.engine.machine import Machine
from nolabel.errors import OutOfMemory

LEAST_STEPS = 8  # of an epoch: larger batches would make next to no steps of small data


def largest_batch(run: Run, paper: int, machine: Machine, *, quiet: bool = False) -> int:
    """Images of a step that fit, counted as `nolabel plan` does, with the run's other settings.

    The largest power of two for each device and micro-batch; over all of them not more than the
    paper's batch, nor than an eighth of the data. Only what all processes know alike goes in, so
    that they agree: the whole memory, not what is free of it. Where that turns out to be less, the
    trial before training cuts the batch into micro-batches.

    Args:
        run: resolved with any batch.
        paper: the batch of the paper's recipe, in images.
        machine: that trains it.
        quiet: say nothing.

    Returns:
        The batch in images, over all devices and micro-batches.

    Raises:
        OutOfMemory: a single image of each device is too much.
    """
    s, kind = run.settings, methods.load(run.method)
    processes, room = machine.processes, machine.room
    parts = processes * s.accumulate  # pieces of a batch
    most = max(min(paper, run.images // LEAST_STEPS), parts)

    def needed(own: int) -> float:
        counts = extrapolated(
            kind, run.options, s.backbone, s.image_size, s.patch_size, s.precision, own,
            again=s.checkpoint_activations,
        )  # fmt: skip
        sharing = processes if s.shard else 1
        memory = memory_of(counts, run.optim, parts=sharing, layers=s.shard_layers)
        return sum(memory.values())

    own = largest_power(needed, room, most // parts)
    if needed(own) > room:
        raise OutOfMemory(
            f"One image for each device needs {needed(own) / 1e9:,.1f} GB of {room / 1e9:,.1f}. "
            "Use --checkpoint-activations, a smaller --backbone or --image-size."
        )
    if not quiet:
        why = "more do not fit" if parts * own * 2 <= most else (
            f"the paper takes {paper:,}" if paper < 2 * parts * own else "the data are few"
        )  # fmt: skip
        say(
            f"batch size: {parts * own:,}, {needed(own) / 1e9:,.2f} of {room / 1e9:,.1f} GB a "
            f"device ({why})"
        )
    return parts * own


def largest_power(needed: Callable[[int], float], room: float, most: int) -> int:
    """The largest power of two of images, at most `most`, that need no more than `room` bytes; 1
    where even two do not fit."""
    own = 1
    while own * 2 <= most and needed(own * 2) <= room:
        own *= 2
    return own

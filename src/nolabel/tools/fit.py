"""`--batch-size auto`: the largest batch that the devices hold, known before training."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from nolabel import config as options
from nolabel import methods, recipes
from nolabel.config import Parse, Run, Settings, asked, recipe_context
from nolabel.data.source import Source
from nolabel.engine.cost import FULL, extrapolated, memory_of
from nolabel.engine.log import say
from nolabel.errors import OutOfMemory
from nolabel.types import Optim

LEAST_STEPS = 8  # of an epoch: larger batches would make next to no steps of small data
FULL_CPU = 0.5  # of the machine's memory: what is counted is up to 1.5 times as much in a process
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def resolve(
    method: str,
    parse: Parse,
    *,
    config: str | None = None,
    source: Source | None = None,
    quiet: bool = False,
) -> tuple[Run, Source]:
    """As `options.resolve`, and `--batch-size auto` becomes a number."""

    def with_batch(batch: int) -> Parse:
        def parsed(s: Settings, o: Any, optim: Optim) -> tuple[Settings, Any, Optim]:
            s, o, optim = parse(s, o, optim)
            return dataclasses.replace(s, batch_size=batch), o, optim

        return parsed

    if asked(methods.load(method), parse, config)[2].batch_size == "auto":
        # The recipe's own batch may be larger than the data: any will do to count with.
        run, source = options.resolve(method, with_batch(2), config=config, source=source)
        # Rates and more depend on the batch: the recipe is asked again.
        batch = largest_batch(run, quiet=quiet)
        return options.resolve(method, with_batch(batch), config=config, source=source)
    return options.resolve(method, parse, config=config, source=source)


def largest_batch(run: Run, *, quiet: bool = False) -> int:
    """Images of a step that fit, counted as `nolabel plan` does, with the run's other settings.

    The largest power of two for each device and micro-batch; over all of them not more than the
    paper's batch, nor than an eighth of the data.  Only what all processes know alike goes in, so
    that they agree: the whole memory, not what is free of it.  Where that turns out to be less, the
    trial before training cuts the batch into micro-batches.

    Args:
        run: resolved with any batch.
        quiet: say nothing.

    Raises:
        OutOfMemory: a single image of each device is too much.
    """
    s, kind = run.settings, methods.load(run.method)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    parts = processes * int(s.accumulate or 1)  # pieces of a batch
    on_gpu = s.device != "cpu" and torch.cuda.is_available()
    precision = "bf16" if s.precision == "bf16" else "fp32"  # auto: whichever is tried must fit
    room = room_of(on_gpu)
    context = recipe_context(dataclasses.replace(s, batch_size=None), run.images)
    paper = recipes.paper(kind, context).batch_size
    most = max(min(paper, run.images // LEAST_STEPS), parts)

    def needed(own: int) -> float:
        c = extrapolated(
            kind, run.options, str(s.backbone), int(s.image_size or 0), s.patch_size, precision,
            own, again=s.checkpoint_activations,
        )  # fmt: skip
        sharing = processes if s.shard else 1
        return sum(memory_of(c, run.optim, parts=sharing, layers=s.shard_layers).values())

    own = 1
    while parts * own * 2 <= most and needed(own * 2) <= room:
        own *= 2
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


def room_of(on_gpu: bool) -> float:
    """Bytes that a process may plan for: of its GPU, or its share of the machine's memory."""
    if on_gpu:
        return FULL * torch.cuda.get_device_properties(0).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    if limit.isdigit():
        whole = min(whole, int(limit))
    return FULL_CPU * whole / max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)

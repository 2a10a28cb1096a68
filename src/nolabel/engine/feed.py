"""The batches of a run, made from its settings alone: a step that is repeated sees what it saw."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nolabel import distributed
from nolabel.config import Run
from nolabel.data.loader import make_loader
from nolabel.data.source import Source
from nolabel.engine.log import warn
from nolabel.methods.base import Method
from nolabel.types import Batch
from nolabel.views import FastViews
from nolabel.views.plan import ViewPlan


def batches_of(
    run: Run,
    method: Method,
    plan: ViewPlan,
    source: Source,
    device: torch.device,
    start: int,
    end: int,
    *,
    workers: int = 0,
) -> Iterator[Batch]:
    """This process's micro-batches of steps start .. end - 1."""
    s = run.settings
    return make_loader(
        source,
        FastViews(plan, s.seed, device=device if s.views_on == "device" else "cpu"),
        seed=s.seed,
        batch_size=int(s.batch_size or 0),
        start_step=start,
        total_steps=end,
        accumulate=int(s.accumulate or 1),
        rank=distributed.rank(),
        world=distributed.world_size(),
        workers=workers,
        pin=device.type == "cuda",
        with_text=method.wants_text,
        note=warn,
    )

"""What a resolved run is, in lines to read before it starts."""

from __future__ import annotations

import dataclasses

from nolabel import methods
from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.engine import cost
from nolabel.engine.build import build_method, companion
from nolabel.nn.heads import count_parameters


def describe(run: Run, source: Source) -> str:
    """Data, network, views, length, options and a rough peak of memory."""
    s = run.settings
    method, plan = build_method(run, companion(run, source))
    trained, held = cost.numbers_of(method)
    fixed = cost.state_memory(trained, held, run.optim, frozen=cost.frozen_numbers(method))
    if s.steps:
        length = f"{s.steps} steps = {s.steps / run.steps_per_epoch:.1f} epochs"
    else:
        length = f"{s.minutes:g} minutes, measured first"
    workers = "auto" if s.workers is None else s.workers
    encoder = method.encoder
    lines = [
        f"method     {run.method}: {(methods.load(run.method).__doc__ or '').strip()}",
        f"data       {source.name}: {len(source):,} images",
        f"backbone   {s.backbone} at {s.image_size} px, patch or stride {encoder.patch_size} px, "
        f"width {encoder.dim}, {count_parameters(encoder):,} parameters",
        f"training   {length}, batch {s.batch_size}"
        + (f" in {s.accumulate} micro-batches" if (s.accumulate or 1) > 1 else "")
        + f", {workers} workers, views on {s.views_on}, seed {s.seed}, precision {s.precision}",
        *(f"view       {line}" for line in plan.describe()),
        "options    " + _values(run.options),
        "optimiser  " + _values(run.optim),
        f"memory     {sum(fixed.values()) / 1e6:,.0f} MB of weights, gradients and moments, plus "
        "activations",
        f"folder     {run.folder}",
    ]
    return "\n".join(lines)


def _values(options: object) -> str:
    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    return ", ".join(f"{f.name} {getattr(options, f.name)}" for f in fields)

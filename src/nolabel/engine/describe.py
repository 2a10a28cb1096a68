"""What a resolved run is, in lines to read before it starts."""

from __future__ import annotations

import dataclasses

from nolabel import methods
from nolabel.engine import cost
from nolabel.engine.build import Built
from nolabel.engine.resolve import Resolved
from nolabel.nn.parameters import count_parameters


def describe(built: Built, resolved: Resolved) -> str:
    """Data, network, views, length, options and a rough peak of memory.

    What only the measurement will tell is named so.
    """
    run, method, plan = built.run, built.method, built.plan
    s, source, asked = run.settings, resolved.source, resolved.settings
    trained, held = cost.numbers_of(method)
    fixed = cost.state_memory(trained, held, run.optim, frozen=cost.frozen_numbers(method))
    if "steps" in resolved.open:
        length = f"{s.minutes:g} minutes, measured first"
    else:
        length = f"{s.steps} steps = {s.steps / run.steps_per_epoch:.1f} epochs"
    workers = "auto" if asked.workers is None else s.workers
    encoder = method.encoder
    lines = [
        f"method     {run.method}: {(methods.load(run.method).__doc__ or '').strip()}",
        f"data       {source.name}: {len(source):,} images",
        f"backbone   {s.backbone} at {s.image_size} px, patch or stride {encoder.patch_size} px, "
        f"width {encoder.dim}, {count_parameters(encoder):,} parameters",
        f"training   {length}, batch {s.batch_size}"
        + (f" in {s.accumulate} micro-batches" if s.accumulate > 1 else "")
        + f", {workers} workers, views on {asked.views_on}, seed {s.seed}, "
        f"precision {asked.precision}",
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

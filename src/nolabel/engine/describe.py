"""The description of a resolved run that `pretrain` and `--dry-run` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nolabel import methods
from nolabel.config import field_values
from nolabel.engine import cost
from nolabel.engine.build import Built
from nolabel.engine.resolve import Resolved
from nolabel.nn.parameters import count_parameters

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def describe(built: Built, resolved: Resolved) -> str:
    """Data, network, views, length, options and memory of a run, one line each.

    A value that is measured before the first step is shown as "auto".
    """
    run, method, plan = built.run, built.method, built.plan
    s, source, unmeasured = run.settings, resolved.source, resolved.settings
    frozen = cost.frozen_parameters(method)
    memory = cost.state_memory(*cost.state_elements(method), run.optim, frozen=frozen)
    if "steps" in resolved.open:
        length = f"{s.minutes:g} minutes; the number of steps is measured first"
    else:
        length = f"{s.steps} steps = {s.steps / run.steps_per_epoch:.1f} epochs"
    workers = "auto" if unmeasured.workers is None else s.workers
    encoder = method.encoder
    lines = [
        f"method     {run.method}: {(methods.load(run.method).__doc__ or '').strip()}",
        f"data       {source.name}: {len(source):,} images",
        f"backbone   {s.backbone} at {s.image_size} px, patch or stride {encoder.patch_size} px, "
        f"width {encoder.dim}, {count_parameters(encoder):,} parameters",
        f"training   {length}, batch {s.batch_size}"
        + (f" in {s.accumulate} micro-batches" if s.accumulate > 1 else "")
        + f", {workers} workers, views on {unmeasured.views_on}, seed {s.seed}, "
        f"precision {unmeasured.precision}",
        *(f"view       {line}" for line in plan.describe()),
        "options    " + _values(run.options),
        "optimiser  " + _values(run.optim),
        f"memory     {sum(memory.values()) / 1e6:,.0f} MB of weights, gradients and moments, plus "
        "activations",
        f"folder     {run.folder}",
    ]
    return "\n".join(lines)


def _values(options: DataclassInstance) -> str:
    return ", ".join(f"{name} {value}" for name, value in field_values(options).items())

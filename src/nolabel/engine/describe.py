"""The description of a resolved run that `pretrain` and `--dry-run` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nolabel import methods
from nolabel.config import Run, field_values
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
    workers = "auto" if unmeasured.workers is None else s.workers
    encoder = method.encoder
    lines = [
        f"method     {run.method}: {(methods.load(run.method).__doc__ or '').strip()}",
        f"data       {source.name}: {len(source):,} images",
        *(f"note       {note}" for note in source.notes),
        f"backbone   {s.backbone} at {s.image_size} px, patch or stride {encoder.patch_size} px, "
        f"width {encoder.dim}, {count_parameters(encoder):,} parameters",
        f"training   {_length(run, resolved)}, batch {s.batch_size}"
        + (f" in {s.accumulate} micro-batches" if s.accumulate > 1 else "")
        + f", {workers} workers, views on {unmeasured.views_on}, seed {s.seed}, "
        f"precision {unmeasured.precision}",
        *_cache_line(run),
        *(f"view       {line}" for line in plan.describe()),
        "options    " + _values(run.options),
        "optimiser  " + _values(run.optim),
        f"memory     {_megabytes(built):,.0f} MB of weights, gradients and moments, plus "
        "activations",
        f"folder     {run.folder}",
    ]
    return "\n".join(lines)


def summarise(built: Built, resolved: Resolved) -> str:
    """A run in five lines; `describe` and the run's config.yaml have every value."""
    run, encoder = built.run, built.method.encoder
    s, o = run.settings, run.optim
    split = f" in {s.accumulate} parts" if s.accumulate > 1 else ""
    lines = [
        f"method    {run.method} on {resolved.source.name}: {len(resolved.source):,} images",
        f"network   {s.backbone} at {s.image_size} px, {count_parameters(encoder):,} parameters, "
        f"{_megabytes(built):,.0f} MB",
        f"training  {_length(run, resolved)}, batch {s.batch_size}{split}, seed {s.seed}",
        f"optimiser {o.name}, lr {o.lr:g}, weight decay {o.weight_decay:g}, recipe {s.recipe}",
        f"folder    {run.folder}; its config.yaml has all settings",
    ]
    return "\n".join(lines)


def _cache_line(run: Run) -> list[str]:
    """How decoded images are kept in memory."""
    pixels = run.settings.cache
    if isinstance(pixels, str):
        return []
    return [f"cache      decoded images stay in memory, at most {pixels:,} pixels each"]


def _length(run: Run, resolved: Resolved) -> str:
    s = run.settings
    if "steps" in resolved.open:
        return f"{s.minutes:g} minutes; the number of steps is measured first"
    return f"{s.steps} steps = {s.steps / run.steps_per_epoch:.1f} epochs"


def _megabytes(built: Built) -> float:
    """Of weights, gradients and moments."""
    return cost.method_memory(built.method, built.run.optim) / 1e6


def _values(options: DataclassInstance) -> str:
    return ", ".join(f"{name} {value}" for name, value in field_values(options).items())

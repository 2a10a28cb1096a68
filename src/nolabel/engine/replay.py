"""A step that was not finite, repeated to find where it began.

The run rejects such a step and keeps under captured/ the state before it. Images and views follow
from the step's number and the seed, so that a single process repeats it exactly at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nolabel.data.open import open_source
from nolabel.device import autocast, pick_device
from nolabel.engine.build import started
from nolabel.engine.checkpoint import load_checkpoint, restore
from nolabel.engine.distributed_method import DistributedMethod
from nolabel.engine.feed import batches_of
from nolabel.engine.gradients import gradients
from nolabel.engine.run_folder import CAPTURED
from nolabel.errors import UsageError
from nolabel.methods.base import Method
from nolabel.nn.random_state import set_rng_state
from nolabel.types import Batch, Clock


@dataclasses.dataclass
class Repeated:
    """What a repeated step showed; names are those of modules and parameters of the method."""

    precision: str
    loss: float
    views: list[str]  # views that hold values that are not finite
    weights: list[str]  # parameters and buffers that did so before the step
    output: str  # the first output that is not finite
    entered: float  # largest absolute value of what entered there
    gradient: str  # the first output, in the backward pass, whose gradient is not finite
    gradients: int  # parameters whose gradient is not finite

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are."""
        return not self.gradients and math.isfinite(self.loss)


def replay(folder: str | Path, precision: str | None = None) -> tuple[int, Repeated]:
    """Repeats the step that a run kept because it was not finite.

    Args:
        folder: of the run.
        precision: fp32 or bf16; None for that of the run.

    Returns:
        The step, counted from 0, and what it showed.

    Raises:
        UsageError: no such step was kept.
    """
    folder = Path(folder)
    if not (folder / CAPTURED).is_dir() or not (folder / "config.yaml").is_file():
        raise UsageError(
            f"{folder} holds no step that was not finite. Such a step is skipped, reported, and "
            f"kept in the folder {CAPTURED} of the run."
        )
    run, method, plan = started(folder)
    s, device = run.settings, pick_device(run.settings.device, fallback=True)
    held = load_checkpoint(folder / CAPTURED)
    restore(method, None, held.state["learner"])
    method.to(device).train()
    set_rng_state(held.state["rng"])
    source = open_source(s.data, image_size=s.image_size, download=s.download, channels=s.channels)
    batches = batches_of(run, method, plan, source, device, held.step, held.step + 1)
    parts = s.accumulate
    chosen = precision or s.precision
    clock = Clock(held.step, s.steps, run.steps_per_epoch)
    return held.step, _repeat(method, (b.to(device) for b in batches), parts, clock, chosen, device)


def _repeat(
    method: Method,
    batches: Iterator[Batch],
    parts: int,
    clock: Clock,
    precision: str,
    device: torch.device,
) -> Repeated:
    state = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    out = Repeated(precision, 0.0, [], [k for k, v in state.items() if _bad(v)], "", 0.0, "", 0)

    def checked() -> Iterator[Batch]:
        for batch in batches:
            out.views += [k for k, v in batch.views.items() if _bad(v) and k not in out.views]
            yield batch

    with _watching(method, out):
        _, loss = gradients(
            DistributedMethod(method), checked(), parts, clock, lambda: autocast(precision, device)
        )
    out.loss = float(loss)
    out.gradients = sum(p.grad is not None and _bad(p.grad) for p in method.parameters())
    return out


@contextlib.contextmanager
def _watching(method: nn.Module, out: Repeated) -> Iterator[None]:
    """Notes the first outputs, there and back, that are not finite."""

    def check_output(name: str, given: Any, made: Any) -> None:
        for x in _tensors(made):
            if not out.output and _bad(x):
                out.output = name
                out.entered = max((_largest(g) for g in _tensors(given)), default=0.0)
            if x.requires_grad:
                x.register_hook(lambda grad: check_gradient(name, grad))

    def check_gradient(name: str, grad: Tensor) -> None:
        if not out.gradient and _bad(grad):
            out.gradient = name

    hooks = [
        m.register_forward_hook(lambda m, given, made, name=name: check_output(name, given, made))
        for name, m in method.named_modules() if name
    ]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of floats in what enters or leaves a module."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _tensors(v)


def _bad(x: Tensor) -> bool:
    return x.is_floating_point() and not bool(torch.isfinite(x).all())


def _largest(x: Tensor) -> float:
    """Largest absolute value among those that are finite."""
    x = x.detach()[torch.isfinite(x.detach())].abs()
    return float(x.max()) if x.numel() else 0.0


def format_replay(step: int, seen: Repeated, full: Repeated | None = None) -> str:
    """What a repeated step showed, as lines for the user, with what to change.

    Args:
        step: its number.
        seen: what it showed in the run's precision.
        full: what it showed in fp32, where the run's precision is another.
    """
    lines = [f"step {step} in {seen.precision}: loss {seen.loss:g}, "
             f"{seen.gradients or 'no'} gradients that are not finite"]  # fmt: skip
    if seen.finite:
        lines.append("repeated here it is finite: what broke it was not the step itself. Suspect "
                     "the device, or a process of its own among several.")  # fmt: skip
        return "\n".join(lines)
    if seen.weights:
        lines.append(f"weights and buffers that were not finite before it: {len(seen.weights)}, "
                     f"first {seen.weights[0]}")  # fmt: skip
    if seen.views:
        lines.append(f"views with values that are not finite: {', '.join(seen.views)}")
    if seen.output:
        lines.append(f"first output that is not finite: {seen.output} (the largest value that "
                     f"entered: {seen.entered:.3g})")  # fmt: skip
    elif math.isfinite(seen.loss):
        where = f", from {seen.gradient} on backwards" if seen.gradient else ""
        lines.append(f"all outputs and the loss are finite; the gradients are not{where}")
    else:
        lines.append("all outputs of modules are finite; the loss itself is not")
    if full is not None and full.finite:
        lines.append(f"in fp32 it is finite (loss {full.loss:g}): use --precision fp32.")
    else:
        also = "in fp32 just as well; " if full is not None else ""
        lines.append(f"{also}try --optim.lr a third as large, a longer --optim.warmup-epochs, or "
                     "--optim.clip 1.")  # fmt: skip
    return "\n".join(lines)

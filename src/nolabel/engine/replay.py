"""Repeats a step whose loss or gradients were not finite, to find the module that caused it.

The run skips such a step and saves the state before it under captured/. Images and views are a
function of step and seed, so one process can repeat the step exactly at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nolabel.data.open import open_source
from nolabel.device import autocast, pick_device
from nolabel.engine.build import rebuild
from nolabel.engine.checkpoint import restore
from nolabel.engine.distributed_method import DistributedMethod
from nolabel.engine.feed import batches_of
from nolabel.engine.gradients import gradients
from nolabel.engine.length import change_at, read_changes
from nolabel.engine.run_folder import CAPTURED
from nolabel.engine.saved_state import load_state
from nolabel.errors import UsageError
from nolabel.methods.base import Method
from nolabel.nn.random_state import set_rng_state
from nolabel.types import Batch, Clock


@dataclasses.dataclass
class Replay:
    """What was found in a repeated step; names are of modules and parameters of the method."""

    precision: str
    loss: float
    views: list[str]  # views with non-finite values
    weights: list[str]  # parameters and buffers that were not finite before the step
    output: str  # the first module whose output is not finite
    entered: float  # largest absolute value of its input
    gradient: str  # the first module, in the backward pass, with a non-finite output gradient
    gradients: int  # number of parameters whose gradient is not finite

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are finite."""
        return not self.gradients and math.isfinite(self.loss)


def replay(folder: str | Path, precision: str | None = None) -> tuple[int, Replay]:
    """Repeats the captured step of a run.

    Args:
        folder: of the run.
        precision: fp32 or bf16; None: that of the run.

    Returns:
        The step, counted from 0, and what was found.

    Raises:
        UsageError: the run has no captured step.
    """
    folder = Path(folder)
    if not (folder / CAPTURED).is_dir() or not (folder / "config.yaml").is_file():
        raise UsageError(
            f"{folder} holds no step that was not finite. Such a step is skipped, reported, and "
            f"kept in the folder {CAPTURED} of the run."
        )
    run, method, plan = rebuild(folder)
    s, device = run.settings, pick_device(run.settings.device, fallback=True)
    checkpoint = load_state(folder / CAPTURED)
    restore(method, None, checkpoint.state["learner"])
    method.to(device).train()
    set_rng_state(checkpoint.state["rng"])
    source = open_source(s.data, image_size=s.image_size, download=s.download, channels=s.channels)
    batches = batches_of(run, method, plan, source, device, checkpoint.step, checkpoint.step + 1)
    precision = precision or s.precision
    length = change_at(read_changes(folder), s.steps, checkpoint.step)
    clock = length.clock(checkpoint.step, run.steps_per_epoch)
    on_device = (b.to(device) for b in batches)
    return checkpoint.step, _repeat(method, on_device, s.accumulate, clock, precision, device)


def _repeat(
    method: Method,
    batches: Iterator[Batch],
    accumulate: int,
    clock: Clock,
    precision: str,
    device: torch.device,
) -> Replay:
    state = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    out = Replay(precision, 0.0, [], [k for k, v in state.items() if _bad(v)], "", 0.0, "", 0)

    def checked() -> Iterator[Batch]:
        for batch in batches:
            out.views += [k for k, v in batch.views.items() if _bad(v) and k not in out.views]
            yield batch

    with _watching(method, out):
        _, loss = gradients(
            DistributedMethod(method),
            checked(),
            accumulate,
            clock,
            lambda: autocast(precision, device),
        )
    out.loss = float(loss)
    out.gradients = sum(p.grad is not None and _bad(p.grad) for p in method.parameters())
    return out


@contextlib.contextmanager
def _watching(method: nn.Module, out: Replay) -> Iterator[None]:
    """Records the first non-finite output of the forward and of the backward pass."""

    def check_output(name: str, inputs: object, output: object) -> None:
        for x in _tensors(output):
            if not out.output and _bad(x):
                out.output = name
                out.entered = max((_largest(g) for g in _tensors(inputs)), default=0.0)
            if x.requires_grad:
                x.register_hook(lambda grad: check_gradient(name, grad))

    def check_gradient(name: str, grad: Tensor) -> None:
        if not out.gradient and _bad(grad):
            out.gradient = name

    hooks = [
        m.register_forward_hook(lambda m, args, out_, name=name: check_output(name, args, out_))
        for name, m in method.named_modules() if name
    ]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    """The floating-point tensors in a module's input or output."""
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
    """Largest absolute finite value."""
    x = x.detach()[torch.isfinite(x.detach())].abs()
    return float(x.max()) if x.numel() else 0.0


def format_replay(step: int, replayed: Replay, fp32: Replay | None = None) -> str:
    """What was found in a repeated step, as lines for the user, with what to change.

    Args:
        step: its number, from 0.
        replayed: in the run's precision.
        fp32: in fp32, if the run's precision is another.
    """
    lines = [f"step {step} in {replayed.precision}: loss {replayed.loss:g}, "
             f"{replayed.gradients or 'no'} gradients that are not finite"]  # fmt: skip
    if replayed.finite:
        lines.append("repeated here, the step is finite, so the step itself is not the cause. "
                     "Suspect the device, or another process of a distributed run.")  # fmt: skip
        return "\n".join(lines)
    if replayed.weights:
        lines.append(f"weights and buffers that were not finite before the step: "
                     f"{len(replayed.weights)}, first {replayed.weights[0]}")  # fmt: skip
    if replayed.views:
        lines.append(f"views with values that are not finite: {', '.join(replayed.views)}")
    if replayed.output:
        lines.append(f"first output that is not finite: {replayed.output} (largest value of "
                     f"its input: {replayed.entered:.3g})")  # fmt: skip
    elif math.isfinite(replayed.loss):
        where = f", first at {replayed.gradient} in the backward pass" if replayed.gradient else ""
        lines.append(f"all outputs and the loss are finite; the gradients are not{where}")
    else:
        lines.append("the outputs of all modules are finite; the loss itself is not")
    if fp32 is not None and fp32.finite:
        lines.append(f"in fp32 the step is finite (loss {fp32.loss:g}): use --precision fp32.")
    else:
        also = "not finite in fp32 either; " if fp32 is not None else ""
        lines.append(f"{also}try --optim.lr a third as large, a longer --optim.warmup-epochs, or "
                     "--optim.clip 1.")  # fmt: skip
    return "\n".join(lines)

"""The gradients of an optimiser step, of one batch or of several micro-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from nolabel.engine.distributed_method import DistributedMethod
from nolabel.engine.gradient_cache import cached_gradients
from nolabel.methods.base import Contrastive
from nolabel.types import Batch, Clock, Step


def gradients(
    distributed: DistributedMethod,
    batches: Iterator[Batch],
    accumulate: int,
    clock: Clock,
    cast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    beat: Callable[[float], object] = lambda share: None,
) -> tuple[Step, Tensor]:
    """Computes the gradients of an optimiser step; they are left in `.grad` of the parameters.

    Args:
        distributed: the method, on all ranks.
        batches: micro-batches on the device; the step takes the next `accumulate`.
        accumulate: number of micro-batches of the step.
        clock: of the step.
        cast: returns the autocast context.
        beat: called with the share of the step that is done, 0 to 1.

    Returns:
        The Step of the last micro-batch (of a contrastive method: of all), and the mean loss.
    """
    if accumulate > 1 and isinstance(distributed.method, Contrastive):
        micro_batches = [next(batches) for _ in range(accumulate)]
        out = cached_gradients(distributed, micro_batches, clock, cast)
        distributed.after_backward()
        return out, out.loss
    losses = []
    for micro in range(accumulate):
        batch = next(batches)
        beat(micro / accumulate)
        with cast():
            out = distributed.step(batch, clock, last=micro + 1 == accumulate)
        beat((micro + 0.5) / accumulate)
        (out.loss / accumulate).backward()
        losses.append(out.loss.detach())
    distributed.after_backward()
    return out, torch.stack(losses).mean()

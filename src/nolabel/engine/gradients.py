"""The gradients of an optimiser step, of one batch or of several micro-batches.

Methods that are `Contrastive` have their micro-batches compared with each other, though only one of
them at a time has its activations in memory (Gao et al., "Scaling Deep Contrastive Learning Batch
Size under Memory Limited Setup", 2021, arXiv 2101.06983): the features of all are computed without
gradient; the loss of all gives the gradient of each feature; then those of each micro-batch are
computed again, with gradient, from the same random state. The update is that of the whole batch at
once, heads with batch norm included; a batch norm in the backbone sees a micro-batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nolabel.engine.distributed_method import DistributedMethod
from nolabel.methods.base import Contrastive
from nolabel.nn.random_state import rng_state, set_rng_state
from nolabel.types import Batch, Clock, Step


def gradients(
    distributed: DistributedMethod,
    batches: Iterator[Batch],
    parts: int,
    clock: Clock,
    cast: Callable[[], Any] = contextlib.nullcontext,
    beat: Callable[[float], Any] = lambda share: None,
) -> tuple[Step, Tensor]:
    """Leaves the gradients of a step in the parameters.

    Args:
        distributed: the method, in all processes.
        batches: micro-batches on the device; the step takes the next `parts`.
        parts: number of micro-batches of the step.
        clock: of the step.
        cast: makes the autocast context.
        beat: is called with the share of the step that is done, 0 to 1.

    Returns:
        The Step of the last micro-batch (of all where they are compared), and the mean loss.
    """
    if parts > 1 and isinstance(distributed.method, Contrastive):
        out = _compared(distributed, [next(batches) for _ in range(parts)], clock, cast)
        distributed.after_backward()
        return out, out.loss
    losses = []
    for micro in range(parts):
        batch = next(batches)
        beat(micro / parts)
        with cast():
            out = distributed.step(batch, clock, last=micro + 1 == parts)
        beat((micro + 0.5) / parts)
        (out.loss / parts).backward()
        losses.append(out.loss.detach())
    distributed.after_backward()
    return out, torch.stack(losses).mean()


def _compared(
    distributed: DistributedMethod, batches: Sequence[Batch], clock: Clock, cast: Callable[[], Any]
) -> Step:
    states, held = [], []
    with torch.no_grad(), _frozen_statistics(distributed.method):
        for batch in batches:
            states.append(rng_state())
            with cast():
                held.append(distributed.features(batch))
    whole = tuple(torch.cat(some, 1).requires_grad_() for some in zip(*held, strict=True))
    with cast():
        out = distributed.compare(whole, clock)
    out.loss.backward()
    after, at = rng_state(), 0
    for batch, state in zip(batches, states, strict=True):
        set_rng_state(state)
        with cast():
            features = distributed.features(batch, last=batch is batches[-1])
        own = slice(at, at + batch.size)
        pairs = [(f, w.grad[:, own].to(f.dtype)) for f, w in zip(features, whole, strict=True)
                 if w.grad is not None and f.requires_grad]  # fmt: skip
        torch.autograd.backward([f for f, _ in pairs], [g for _, g in pairs])
        at += batch.size
    set_rng_state(after)
    return Step(out.loss.detach(), out.logs, features=out.features)


@contextlib.contextmanager
def _frozen_statistics(method: nn.Module) -> Iterator[None]:
    """Inside, batch norms keep their running statistics; the second pass updates them."""
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    try:
        for m in norms:
            m.momentum = 0.0
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum

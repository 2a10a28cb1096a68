"""The gradient cache: accumulation for losses that compare the images of a batch with each other.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, arXiv
2101.06983. The negatives come from all micro-batches, while one at a time has activations in
memory. First, the features of all micro-batches are computed without gradient. Then the loss on all
features gives the gradient of each feature. Then the features of each micro-batch are computed
again, with gradient and from the same random state, and backpropagated. The update equals that of
one large batch, including batch norm in heads; batch norm in the backbone sees one micro-batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nolabel.engine.distributed_method import DistributedMethod
from nolabel.nn.random_state import rng_state, set_rng_state
from nolabel.types import Batch, Clock, Step


def cached_gradients(
    distributed: DistributedMethod,
    batches: Sequence[Batch],
    clock: Clock,
    cast: Callable[[], AbstractContextManager[object]],
) -> Step:
    """Computes the gradients of a `Contrastive` method; they are left in `.grad`.

    Args:
        distributed: the method, on all ranks.
        batches: all micro-batches of the step.
        clock: of the step.
        cast: returns the autocast context.

    Returns:
        The Step of all images.
    """
    states, cached = [], []
    with torch.no_grad(), _frozen_statistics(distributed.method):
        for batch in batches:
            states.append(rng_state())
            with cast():
                cached.append(distributed.features(batch))
    # Each [V, B, ...] of all micro-batches, as a leaf that collects the loss's gradient.
    leaves = tuple(torch.cat(parts, 1).requires_grad_() for parts in zip(*cached, strict=True))
    with cast():
        out = distributed.compare(leaves, clock)
    out.loss.backward()
    rng_after, start = rng_state(), 0
    for batch, state in zip(batches, states, strict=True):
        set_rng_state(state)
        with cast():
            features = distributed.features(batch, last=batch is batches[-1])
        rows = slice(start, start + batch.size)
        pairs = [(f, x.grad[:, rows].to(f.dtype)) for f, x in zip(features, leaves, strict=True)
                 if x.grad is not None and f.requires_grad]  # fmt: skip
        torch.autograd.backward([f for f, _ in pairs], [g for _, g in pairs])
        start += batch.size
    set_rng_state(rng_after)
    return Step(out.loss.detach(), out.logs, features=out.features)


@contextlib.contextmanager
def _frozen_statistics(method: nn.Module) -> Iterator[None]:
    """Inside, batch norm does not update its running statistics: the second pass does."""
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    try:
        for m in norms:
            m.momentum = 0.0
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum

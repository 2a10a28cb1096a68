"""Schedules: pure functions of the clock, so that resuming needs the step number only."""

from __future__ import annotations

import math

from nolabel.types import Clock, Optim


def cosine(start: float, end: float, step: float, total: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step = total."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * step / max(total, 1)))


def linear(start: float, end: float, step: float, last: float) -> float:
    """Linear from `start` at step 0 to `end` at step = last, then constant."""
    return end if step >= last else start + (end - start) * step / last


def warmup_cosine(
    start: float, peak: float, end: float, step: int, warmup: int, total: int
) -> float:
    """Linear warm-up over steps 0 to warmup - 1, from `start` to `peak`, then half a cosine to
    `end` at step = total."""
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    return cosine(peak, end, step - warmup, total - warmup)


def learning_rate(optim: Optim, clock: Clock) -> float:
    """The learning rate of this step: linear warm-up, then half a cosine."""
    warmup = min(round(optim.warmup_epochs * clock.steps_per_epoch), clock.length)
    return warmup_cosine(optim.lr_start, optim.lr, optim.lr_end, clock.since, warmup, clock.length)


def weight_decay(optim: Optim, clock: Clock) -> float:
    """The weight decay of this step: constant, or half a cosine to `weight_decay_end`."""
    if optim.weight_decay_end is None:
        return optim.weight_decay
    return cosine(optim.weight_decay, optim.weight_decay_end, clock.since, clock.length)


def momentum(start: float, clock: Clock) -> float:
    """Momentum of an EMA teacher: half a cosine from `start` to 1 (BYOL, §3.3; DINO, §3.1)."""
    return cosine(start, 1.0, clock.since, clock.length)


def per_epoch_linear(start: float, end: float, warmup_epochs: float, clock: Clock) -> float:
    """Linear from `start` in epoch 0 to `end` in epoch warmup_epochs - 1, constant within an epoch
    and afterwards (DINO's teacher temperature); of a fraction of epochs, step by step."""
    if warmup_epochs % 1:
        last = max(round(warmup_epochs * clock.steps_per_epoch) - 1, 1)
        return linear(start, end, clock.step, last)
    return linear(start, end, clock.epoch, max(warmup_epochs - 1, 1)) if warmup_epochs > 0 else end

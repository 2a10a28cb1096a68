"""The optimiser step: what an update calls, and what a rejected step leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nolabel.engine.step import NonFiniteGuard, StepSnapshot, apply_update
from nolabel.errors import GuardStop
from nolabel.types import Clock, Optim

CLOCK = Clock(3, 10, 5)


class Calls(nn.Module):
    """Notes the order of what an update calls, and the gradient that each call sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen = []

    def note(self, what):
        grad = self.weight.grad
        self.seen.append((what, None if grad is None else round(float(grad.norm()), 4)))

    def before_update(self, clock):
        assert clock is CLOCK
        self.note("before_update")

    def after_update(self, clock):
        assert clock is CLOCK
        self.note("after_update")


def test_an_update_clips_edits_steps_clears_and_averages_in_this_order():
    method = Calls()

    class Optimiser(torch.optim.SGD):
        def step(self, closure=None):
            method.note("step")
            return super().step(closure)

    optimiser = Optimiser(method.parameters(), lr=0.5)
    method.weight.grad = torch.tensor([30.0, 40.0])
    apply_update(method, optimiser, Optim(clip=5.0), CLOCK)
    assert method.seen == [("before_update", 5.0), ("step", 5.0), ("after_update", None)]
    torch.testing.assert_close(method.weight.detach(), torch.tensor([-1.5, -2.0]))
    method.weight.grad = torch.tensor([30.0, 40.0])
    apply_update(method, optimiser, Optim(), CLOCK)  # no clipping
    assert method.seen[-2] == ("step", 50.0)


def test_a_snapshot_puts_back_statistics_and_knows_the_random_state():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    snapshot = StepSnapshot(net)
    net(torch.randn(4, 2))
    snapshot.take()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    drawn = torch.rand(3)
    net(torch.full((4, 2), math.nan))
    assert not torch.isfinite(net[0].running_mean).any()
    snapshot.restore_statistics()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    torch.set_rng_state(snapshot.rng["cpu"])
    assert torch.equal(torch.rand(3), drawn)


def test_guard_skips_twice_and_stops_at_the_third():
    guard, bad, good = NonFiniteGuard(), torch.tensor(float("nan")), torch.tensor(1.0)
    assert guard.check(good, good)
    assert not guard.check(bad, good)
    assert not guard.check(good, torch.tensor(float("inf")))
    assert guard.check(good, good)
    assert not guard.check(bad, bad)
    assert not guard.check(bad, bad)
    with pytest.raises(GuardStop, match="learning rate") as stop:
        guard.check(bad, bad)
    assert stop.value.exit_code == 3


def test_the_guard_says_what_happened_and_what_to_do():
    guard = NonFiniteGuard(limit=2)
    assert not guard.check(torch.tensor(2.5), torch.tensor(torch.inf))
    with pytest.raises(GuardStop) as stop:
        guard.check(torch.tensor(2.5), torch.tensor(torch.inf))
    for part in ("gradient norm was", "2 steps", "loss 2.5", "inf", "--optim.lr", "fp32"):
        assert part in str(stop.value)
    with pytest.raises(GuardStop, match="The loss was"):
        NonFiniteGuard(limit=1).check(torch.tensor(torch.nan), torch.tensor(torch.nan))


def test_the_guard_takes_plain_numbers():
    guard = NonFiniteGuard()
    assert guard.check(1.0, 2.0)
    assert not guard.check(math.nan, 2.0)


def test_the_guards_whole_state_is_one_integer():
    first = NonFiniteGuard(limit=3)
    for _ in range(2):
        assert not first.check(math.inf, 1.0)
    second = NonFiniteGuard(limit=3)
    second.consecutive = int(first.consecutive)
    with pytest.raises(GuardStop):
        second.check(math.inf, 1.0)

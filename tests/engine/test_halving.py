"""Successive halving with faked training and a faked judge."""

from __future__ import annotations

import pytest

from nolabel.engine.halving import LEAST_STEPS, OVERHEAD, Rounds, halve, plan_rounds, sizes


def test_the_field_is_halved_until_one_is_left():
    assert [sizes(n) for n in (1, 2, 3, 4, 6)] == [[], [2], [3, 2], [4, 2], [6, 3, 2]]


def test_what_the_losers_take_is_counted():
    rounds = Rounds(4, (10.0, 20.0))
    assert rounds.lost == 3 * 10 + 1 * 20 + OVERHEAD * (3 + 4 + 2)


@pytest.mark.parametrize("step", [0.01, 0.1, 0.4])
def test_the_rounds_take_what_may_be_lost_and_no_candidate_gets_too_few_steps(step):
    rounds = plan_rounds(4, step, budget=150.0)
    assert rounds is not None
    assert rounds.lost == pytest.approx(150)
    assert rounds.seconds[0] >= LEAST_STEPS * step
    more = plan_rounds(rounds.candidates + 1, step, budget=150.0)
    assert rounds.candidates == 4 or more == rounds, "one more would get too few"


def test_slow_steps_leave_fewer_candidates_and_then_none():
    fields = [plan_rounds(4, step, 150.0) for step in (0.01, 0.4, 2.0)]
    assert [r and r.candidates for r in fields] == [4, 3, None] or [
        r and r.candidates for r in fields
    ] == [4, 2, None]
    assert plan_rounds(1, 0.01, 150.0) is None
    assert plan_rounds(4, 0.01, 0.0) is None


def test_the_best_trains_in_every_round_and_the_worse_half_stops():
    trained: dict[str, float] = {}
    worth = {"a": 0.2, "b": 0.5, "c": 0.4, "d": 0.1}
    rounds = []

    def train(name, seconds):
        trained[name] = trained.get(name, 0) + seconds

    winner = halve(
        list(worth), (1.0, 2.0), train, worth.__getitem__,
        lambda scores, left: rounds.append((dict(scores), list(left))),
    )  # fmt: skip
    assert winner == "b"
    assert trained == {"a": 1, "b": 3, "c": 3, "d": 1}
    assert rounds == [(worth, ["b", "c"]), ({"b": 0.5, "c": 0.4}, ["b"])]


def test_of_equal_candidates_the_rules_choice_stays():
    assert halve(["rule", "other"], (1.0,), lambda *_: None, lambda name: 0.3, lambda *_: None) == (
        "rule"
    )

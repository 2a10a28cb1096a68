"""Successive halving: all candidates train for a while, the better half goes on for twice as long.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016 (arXiv 1502.07943).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

LEAST_STEPS = 100  # of a candidate in the first round; fewer are mostly warm-up, and tell nothing
OVERHEAD = 3.0  # seconds to set up a candidate, and to judge it once


class Rounds(NamedTuple):
    """How many candidates take part, and how long the rounds are."""

    candidates: int
    seconds: tuple[float, ...]  # of training of each candidate, for each round

    @property
    def lost(self) -> float:
        """Seconds that do not train the winner."""
        fields = sizes(self.candidates)
        lost = sum((n - 1) * s for n, s in zip(fields, self.seconds, strict=True))
        return lost + OVERHEAD * (self.candidates - 1 + sum(fields))


def sizes(candidates: int) -> list[int]:
    """Number of candidates in each round, until one is left."""
    out = []
    while candidates > 1:
        out.append(candidates)
        candidates = (candidates + 1) // 2
    return out


def plan_rounds(most: int, step_seconds: float, budget: float) -> Rounds | None:
    """The rounds with the most candidates of which each makes enough steps.

    Args:
        most: candidates that there are.
        step_seconds: of a step of the first candidate.
        budget: seconds that may not train the winner.

    Returns:
        None where not even two candidates get `LEAST_STEPS` steps.
    """
    for n in range(most, 1, -1):
        doubled = [2.0**i for i in range(len(sizes(n)))]
        fixed = Rounds(n, tuple(0.0 for _ in doubled)).lost
        unit = Rounds(n, tuple(doubled)).lost - fixed
        first = (budget - fixed) / unit
        if first >= LEAST_STEPS * step_seconds:
            return Rounds(n, tuple(first * d for d in doubled))
    return None


def halve(
    names: Sequence[str],
    seconds: Sequence[float],
    train: Callable[[str, float], object],
    judge: Callable[[str], float],
    judged: Callable[[Mapping[str, float], Sequence[str]], object],
) -> str:
    """Plays the rounds; the name of the winner.

    Args:
        names: of the candidates; of equal ones the earlier one is better.
        seconds: of each round.
        train: trains a candidate for so many seconds more.
        judge: its score; more is better.
        judged: called after each round with the scores, and with those that go on, best first.
    """
    left = list(names)
    for each in seconds:
        for name in left:
            train(name, each)
        scores = {name: judge(name) for name in left}
        ranked = sorted(left, key=lambda name: -scores[name])
        left = ranked[: (len(left) + 1) // 2]
        judged(scores, left)
    return left[0]

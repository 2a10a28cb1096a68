"""Is the run working? A verdict from the lines of metrics.jsonl alone, without labels.

Thresholds lie between forced failures and healthy runs: over a hundred runs of minutes (22 methods,
two networks, two sets of small pictures). There, signs of collapse vanished by step 45; the loss
(median of five lines) never reached three times its largest value of the first tenth, nor the
gradient a hundred times its own.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nolabel.engine.monitor.progress import STARVED
from nolabel.engine.monitor.signals import collapse

EARLY, LASTING, LINES = 60, 40, 3  # steps that prove nothing; that a sign must last; and its lines
LOSS, GRADIENT = 3.0, 100.0  # times the first tenth's
RECENT = 5  # lines whose median counts
# The loss is flat if in the last third it falls by less than this share of its total fall and by
# less than this share of itself.
FLAT, LITTLE = 0.01, 0.02
# A spike: a loss further above the median of those before than so many times their usual distance
# from it, and by more than this share of it.
SPIKE, HIGH, BEFORE = 8.0, 0.1, 20
SETTLED = 30  # lines below which improvement is not judged

ADVICE = {
    "features": "Try --optim.lr a third as large, or a longer --optim.warmup-epochs.",
    "embeddings": "Try --optim.lr a third as large; keep what holds pictures apart (stop of the "
    "gradient and predictor, negatives, decorrelation) switched on.",
    "targets": "Try a lower temperature of the teacher (sharper targets), centring, or a smaller "
    "--optim.lr.",
    "prototypes": "Try a higher temperature of the teacher, centring by Sinkhorn-Knopp, or fewer "
    "prototypes.",
    "diverging": "Try --optim.lr a third as large, --optim.clip 1, or --precision fp32.",
    "starved": "`nolabel bench data` says which stage is slow; try more --workers, or `nolabel "
    "pack`.",
    "stopped improving": "More steps of the same will hardly help: try more or other data, a "
    "larger network, or stronger views.",
}


@dataclass(frozen=True)
class Verdict:
    """What the lines say: learning, collapsed, diverging, starved, stopped improving, or early."""

    state: str
    why: str = ""
    advice: str = ""

    def __str__(self) -> str:
        state = self.state.capitalize()
        return f"{state}: {self.why}. {self.advice}".strip() if self.why else f"{state}."


class Doctor:
    """Examines every line as it comes, in constant memory.

    Args:
        total: steps of the run.
    """

    def __init__(self, total: int):
        self.total = total
        self._loss: deque[float] = deque(maxlen=RECENT)
        self._norm: deque[float] = deque(maxlen=RECENT)
        self._first: list[tuple[float, float]] = []  # loss and gradient of the first tenth
        self._since: tuple[int, int] | None = None  # first step of a lasting sign, and its lines
        self._before: deque[float] = deque(maxlen=BEFORE)
        self.spikes = 0  # lines whose loss leapt up, so far

    def update(self, line: Mapping[str, Any]) -> Verdict | None:
        """The alarm that this line and those before it give, collapsed or diverging, or None."""
        step = int(line["step"])
        loss, norm = (_number(line.get(k)) for k in ("loss", "gradient_norm"))
        self.spikes += self._leapt(loss)
        self._loss.append(loss)
        self._norm.append(norm)
        if step <= self.total / 10 or len(self._first) < RECENT:
            self._first.append((loss, norm))
        sign = collapse(line)
        if sign is None:
            self._since = None
        else:
            first, lines = self._since or (step, 0)
            self._since = (first, lines + 1)
            if step >= EARLY and step - first >= LASTING and lines + 1 >= LINES:
                return Verdict("collapsed", f"since step {first} {sign.why}", ADVICE[sign.sign])
        why = self._diverging()
        return Verdict("diverging", why, ADVICE["diverging"]) if why else None

    def _leapt(self, loss: float) -> bool:
        """Whether this loss stands out from those of the lines before it."""
        known = [v for v in self._before if math.isfinite(v)]
        self._before.append(loss)
        if len(known) < BEFORE // 2:
            return False
        middle = statistics.median(known)
        usual = statistics.median(abs(v - middle) for v in known)
        return loss - middle > max(SPIKE * usual, HIGH * abs(middle))

    def _diverging(self) -> str:
        lost = sum(not math.isfinite(v) for v in self._loss)
        if lost > RECENT // 2:
            return f"the loss was not a number in {lost} of the last {len(self._loss)} lines"
        if len(self._first) < RECENT or len(self._loss) < RECENT:
            return ""
        base = max((abs(v) for v, _ in self._first if math.isfinite(v)), default=0.0)
        now = statistics.median(self._loss)
        if base > 1e-3 and now > LOSS * base:
            return f"the loss is {now:.3g}, {now / base:.1f} times its largest of the first tenth"
        norm = statistics.median(n for _, n in self._first)
        big = statistics.median(self._norm)
        if 1e-6 < norm < math.inf and big > GRADIENT * norm:
            return f"the gradient's norm is {big:.3g}, {big / norm:.0f} times that of the beginning"
        return ""


def examine(lines: Iterable[Mapping[str, Any]], total: int) -> Verdict:
    """The verdict on a run from all its lines so far, alarms first.

    Args:
        lines: of metrics.jsonl, in order.
        total: steps of the run.
    """
    doctor, every, alarm = Doctor(total), list(lines), None
    for line in every:
        alarm = doctor.update(line)
    if alarm:
        return alarm
    if not every or every[-1]["step"] < EARLY:
        return Verdict("early", f"{EARLY} steps are needed for a verdict" if every else "")
    waits = [_number(line.get("data_wait")) for line in every[len(every) // 2 :]]
    waits = [w for w in waits if math.isfinite(w)]
    if waits and statistics.median(waits) > STARVED:
        share = statistics.median(waits)
        return Verdict("starved", f"{share:.0%} of the time went by waiting for data",
                       ADVICE["starved"])  # fmt: skip
    if why := _flat(every):
        return Verdict("stopped improving", why, ADVICE["stopped improving"])
    return Verdict("learning")


def _flat(lines: list[Mapping[str, Any]]) -> str:
    """Why the last third brought nothing; empty if it did, or if nobody can tell.

    Judged by the probe where there is one. Else by a loss that fell and then stays: one that rose
    (a teacher that becomes surer, a queue that fills) says nothing.
    """
    probes = [(int(x["step"]), p) for x in lines if (p := x.get("probe_knn")) is not None]
    if len(probes) >= 6:
        late = len(probes) - len(probes) // 3
        before, after = (max(p for _, p in some) for some in (probes[:late], probes[late:]))
        if after > before:
            return ""
        return f"the probe's best is {before:.1%}, of before step {probes[late][0]}"
    if len(lines) < SETTLED:
        return ""
    loss = [_number(x.get("loss")) for x in lines]
    tenth = max(len(loss) // 10, RECENT)
    late = len(loss) * 2 // 3
    begun, then, now = (
        statistics.median(loss[i : i + tenth]) for i in (0, late - tenth, len(loss) - tenth)
    )
    way = begun - min(then, now)
    if way <= 0 or now > then or then - now > min(FLAT * way, LITTLE * abs(then)):
        return ""
    return (
        f"since step {lines[late]['step']} the loss fell by less than {FLAT:.0%} of its total fall "
        f"({then:.4g} to {now:.4g})"
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)

"""A verdict on a run from metrics.jsonl alone, without labels.

The thresholds separate forced failures from healthy runs: over a hundred runs of some minutes (22
methods, two networks, two data sets of small images). In healthy runs, signs of collapse vanished
by step 45, the loss (median of five lines) stayed below three times its largest value of the first
tenth, and the gradient norm below a hundred times that.
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

# Before this step there is no verdict; a sign of collapse must last so many steps and lines.
EARLY, LASTING, LINES = 60, 40, 3
LOSS, GRADIENT = 3.0, 100.0  # limits of divergence, relative to the first tenth of the run
RECENT = 5  # lines of the running median
# A flat loss falls in the last third by less than these shares of its total fall and of itself.
FLAT, LITTLE = 0.01, 0.02
# A loss spike is above the median of the BEFORE lines before it by more than SPIKE times their
# median absolute deviation, and by more than the share HIGH.
SPIKE, HIGH, BEFORE = 8.0, 0.1, 20
SETTLED = 30  # fewer lines are too few to judge improvement

ADVICE = {
    "features": "Try --optim.lr a third as large, or a longer --optim.warmup-epochs.",
    "embeddings": "Try --optim.lr a third as large; keep what prevents "
    "collapse (stop-gradient and predictor, negatives, decorrelation) switched on.",
    "targets": "Try a lower teacher temperature (sharper targets), centring, or a smaller "
    "--optim.lr.",
    "prototypes": "Try a higher teacher temperature, centring by Sinkhorn-Knopp, or fewer "
    "prototypes.",
    "diverging": "Try --optim.lr a third as large, --optim.clip 1, or --precision fp32.",
    "stopped improving": "More steps will hardly help: try more or other data, a "
    "larger network, or stronger views.",
}


@dataclass(frozen=True)
class Verdict:
    """The verdict: learning, collapsed, diverging, stopped improving, or early."""

    state: str
    why: str = ""
    advice: str = ""
    speed: str = ""  # a sentence on the time that was spent waiting for data

    def __str__(self) -> str:
        state = self.state.capitalize()
        text = f"{state}: {self.why}. {self.advice}".strip() if self.why else f"{state}."
        return f"{text} {self.speed}".strip()


class Doctor:
    """Checks each new line of metrics, in constant memory.

    Args:
        total: steps of the run.
    """

    def __init__(self, total: int):
        self.total = total
        self._loss: deque[float] = deque(maxlen=RECENT)
        self._norm: deque[float] = deque(maxlen=RECENT)
        self._first: list[tuple[float, float]] = []  # loss and gradient of the first tenth
        self._since: tuple[int, int] | None = (
            None  # a sign of collapse: its first step, its lines so far
        )
        self._before: deque[float] = deque(maxlen=BEFORE)
        self.spikes = 0  # loss spikes so far, in lines

    def update(self, line: Mapping[str, Any]) -> Verdict | None:
        """Adds a line.

        Args:
            line: an object of metrics.jsonl.

        Returns:
            The verdict "collapsed" or "diverging", or None.
        """
        step = int(line["step"])
        loss, norm = (_number(line.get(k)) for k in ("loss", "gradient_norm"))
        self.spikes += self._is_spike(loss)
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

    def _is_spike(self, loss: float) -> bool:
        """Whether this loss is far above those of the lines before it."""
        finite = [v for v in self._before if math.isfinite(v)]
        self._before.append(loss)
        if len(finite) < BEFORE // 2:
            return False
        middle = statistics.median(finite)
        usual = statistics.median(abs(v - middle) for v in finite)
        return loss - middle > max(SPIKE * usual, HIGH * abs(middle))

    def _diverging(self) -> str:
        """Why the run counts as diverging; empty if it does not."""
        lost = sum(not math.isfinite(v) for v in self._loss)
        if lost > RECENT // 2:
            return f"the loss was not finite in {lost} of the last {len(self._loss)} lines"
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


def examine(lines: Iterable[Mapping[str, Any]], total: int, workers: int | None = None) -> Verdict:
    """The verdict on a run from all its lines so far; collapse and divergence first.

    Args:
        lines: of metrics.jsonl, in order.
        total: steps of the run.
        workers: data loading processes of the run, for the advice; None: unknown.
    """
    doctor, metrics, alarm = Doctor(total), list(lines), None
    for line in metrics:
        alarm = doctor.update(line)
    if alarm:
        return alarm
    if not metrics or metrics[-1]["step"] < EARLY:
        return Verdict("early", f"{EARLY} steps are needed for a verdict" if metrics else "")
    speed = _speed(metrics, workers)
    if why := _flat(metrics):
        return Verdict("stopped improving", why, ADVICE["stopped improving"], speed)
    return Verdict("learning", speed=speed)


def _speed(lines: list[Mapping[str, Any]], workers: int | None) -> str:
    """How long the second half of the run waited for data, and what helps; empty if not long."""
    waits = [_number(line.get("data_wait")) for line in lines[len(lines) // 2 :]]
    waits = [w for w in waits if math.isfinite(w)]
    if not waits or statistics.median(waits) <= STARVED:
        return ""
    text = f"Speed: {statistics.median(waits):.0%} of the time went into loading data"
    measure = "`nolabel bench data` measures each stage"
    if workers == 0:
        return (
            f"{text}, which took turns with training (0 workers). {measure}; --workers 2 helps "
            "where cores are idle, `nolabel pack` where files are large."
        )
    more = "more --workers" if workers is None else f"more --workers than {workers}"
    return f"{text}. {measure}; {more} or `nolabel pack` helps."


def _flat(lines: list[Mapping[str, Any]]) -> str:
    """Why the last third did not improve the run; empty if it did, or if that cannot be judged.

    Judged by the probe if there is one, else by a loss that fell and then stays. A loss that rose
    (sharper targets, a queue that fills) is no evidence.
    """
    probes = [(int(x["step"]), p) for x in lines if (p := x.get("probe_knn")) is not None]
    if len(probes) >= 6:
        late = len(probes) - len(probes) // 3
        before, after = (max(p for _, p in some) for some in (probes[:late], probes[late:]))
        if after > before:
            return ""
        best = max(probes[:late], key=lambda p: p[1])[0]
        return f"the probe has not risen above the {before:.1%} of step {best}"
    if len(lines) < SETTLED:
        return ""
    loss = [_number(x.get("loss")) for x in lines]
    tenth = max(len(loss) // 10, RECENT)
    late = len(loss) * 2 // 3
    first, then, now = (
        statistics.median(loss[i : i + tenth]) for i in (0, late - tenth, len(loss) - tenth)
    )
    fall = first - min(then, now)
    if fall <= 0 or now > then or then - now > min(FLAT * fall, LITTLE * abs(then)):
        return ""
    return (
        f"since step {lines[late]['step']} the loss fell by less than {FLAT:.0%} of its total fall "
        f"({then:.4g} to {now:.4g})"
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)

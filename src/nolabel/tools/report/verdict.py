"""What a report says first: the verdict in words and three numbers, from a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from nolabel.engine.monitor.doctor import examine
from nolabel.errors import command
from nolabel.tools.report.curves import is_number

HELP = (
    "What helps most is a longer run, then more images, a larger network, or the settings that "
    "`nolabel scan` suggests for the data."
)
LABELS = "names of folders serve as labels, for measuring only"


@dataclass(frozen=True)
class Result:
    """The result of a run and of the better baseline, pixels or a random initialisation.

    Attributes:
        own: the row that represents the run.
        rival: the row that represents the baseline.
    """

    own: Mapping[str, Any]
    rival: Mapping[str, Any]

    @property
    def points(self) -> float:
        """Percentage points by which the run is above the baseline."""
        return 100 * (self.own["value"] - self.rival["value"])

    @property
    def clear(self) -> bool:
        """Whether the intervals do not overlap."""
        low, high = sorted((self.own, self.rival), key=lambda row: row["value"])
        return _limit(high, "low") > _limit(low, "high")

    @property
    def what(self) -> str:
        """Protocol, setting and metric of both rows."""
        protocol = str(self.own.get("protocol", "knn"))
        shown = "k-NN" if protocol == "knn" else protocol
        return f"{shown} {self.own.get('metric', '')} ({self.own.get('setting', '')})"


def chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that represent their encoders, one for each encoder and protocol.

    Args:
        rows: of a comparison. Without a mark `best` the first of an encoder and protocol is taken.
    """
    out: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = (str(row["encoder"]), str(row.get("protocol", "")))
        if row.get("best") or ("best" not in row and key not in out):
            out[key] = row
    return list(out.values())


def result(rows: Sequence[Mapping[str, Any]], run: str) -> Result | None:
    """The result of a run in a comparison; k-NN's where there are several protocols.

    Args:
        rows: of the comparison.
        run: name of the run's encoder, or path of its folder.

    Returns:
        None without a row of the run, or without a baseline.
    """
    best = chosen(rows)
    protocols = list(dict.fromkeys(str(r.get("protocol", "")) for r in best))
    for protocol in sorted(protocols, key=lambda name: name not in ("knn", "")):
        some = [r for r in best if str(r.get("protocol", "")) == protocol]
        rivals = [r for r in some if _is_baseline(str(r["encoder"]))]
        others = [r for r in some if not _is_baseline(str(r["encoder"]))]
        named = [r for r in others if PurePath(str(r["encoder"])).name == PurePath(run).name]
        if rivals and others:
            own = (named or sorted(others, key=lambda r: r["value"])[-1:])[0]
            return Result(own, max(rivals, key=lambda r: r["value"]))
    return None


def verdict(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
    total: int = 0,
    *,
    run: str = "RUN",
    workers: int | None = None,
) -> str:
    """The verdict in words: learned, inconclusive, not yet or not measured, and what the doctor
    says beside it.

    Args:
        rows: a comparison.
        metrics: lines of metrics.jsonl.
        total: steps of the run; 0: those of the last line.
        run: name of the run's encoder in the comparison, or path of its folder.
        workers: data loading processes of the run.
    """
    if not metrics:
        return "Not measured: no metrics yet."
    health = examine(metrics, total or int(metrics[-1]["step"]), workers)
    if health.state in ("collapsed", "diverging"):
        return str(health)
    found = result(rows, run)
    flat = health.state == "stopped improving"  # the doctor says what helps, and no longer run
    text = _measured(found, "" if flat else HELP) if found else _unmeasured(metrics[-1], run)
    if health.state in ("learning", "early"):
        return f"{text} {health.speed}".strip()
    return f"{text} {health}"


def _measured(found: Result, advice: str) -> str:
    """What was found; where it is not above the baseline, with the advice."""
    own, rival = found.own, found.rival
    against = f"against {rival['value']:.1%} with {rival['encoder']}: {found.points:+.1f} points."
    if found.what.startswith("k-NN top1"):
        setting = f" ({own['setting']})" if own.get("setting") else ""
        text = (
            f"k-NN{setting} finds the right class for {own['value']:.1%} of unseen images, "
            f"{against}"
        )
    else:
        text = f"{found.what}: {own['value']:.1%}, {against}"
    if own["value"] <= rival["value"]:
        name = str(rival["encoder"])
        word = "below" if found.clear else "not above"
        shown = "a random initialisation" if name.startswith("random:") else name
        return f"Not yet: {word} {shown}. {text} {advice}".strip()
    if found.clear:
        return f"Learned. {text}"
    return f"Inconclusive. {text} The intervals overlap: more test images would tell."


def _unmeasured(last: Mapping[str, Any], run: str) -> str:
    advice = f"`{command('nolabel', 'compare', run, 'pixels', f'random:{run}', '--train', 'SRC')}`"
    probed = last.get("probe_knn")
    if is_number(probed):
        return (
            f"Not compared: k-NN on the probe's labelled data reached {probed:.1%}. {advice} "
            "compares it with pixels and random initialisation, in this report too."
        )
    text = "Not measured against labels"
    spread, rank = last.get("feature_std"), last.get("effective_rank")
    if isinstance(spread, float) and isinstance(rank, float):
        text += (
            f". The spread of the features is {spread:.2f} (1 = uniform directions, 0 = "
            f"collapsed), their effective rank {rank:.0f}"
        )
    return f"{text}. Give --probe to training, or run {advice}; {LABELS}."


def three_numbers(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], run: str
) -> list[tuple[str, str]]:
    """Up to three numbers to see at once, each with what it is.

    Args:
        rows: a comparison.
        metrics: lines of metrics.jsonl.
        run: name of the run's encoder in the comparison, or path of its folder.
    """
    found = result(rows, run)
    if found:
        return [
            (f"{found.own['value']:.1%}", f"{found.what}, this run"),
            (f"{found.rival['value']:.1%}", str(found.rival["encoder"])),
            (f"{found.points:+.1f}", "percentage points between them"),
        ]
    if not metrics:
        return []
    last = metrics[-1]
    named = [
        ("probe_knn", "{:.1%}", "k-NN on the probe's labelled data"),
        ("effective_rank", "{:.0f}", "effective rank of the features"),
        ("feature_std", "{:.2f}", "spread of the features (0 = collapsed)"),
        ("step", "{:,.0f}", "steps"),
    ]
    numbers = [(form.format(last[k]), what) for k, form, what in named if is_number(last.get(k))]
    return numbers[:3]


def _is_baseline(name: str) -> bool:
    return name == "pixels" or name.startswith("random:")


def _limit(row: Mapping[str, Any], key: str) -> float:
    """A limit of the interval of a row, or its value where it has none."""
    value = row.get(key)
    return float(row["value"] if value is None or not math.isfinite(value) else value)

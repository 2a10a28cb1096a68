"""`Report`: the result of a protocol, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def represents(row: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether a row of a report is the one that represents the encoder."""
    return all(row.get(key) == best.get(key) for key in ("setting", "metric"))


_SAME = 0.005  # difference below which the balanced accuracy is not printed


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a protocol.

    Attributes:
        protocol: name of the protocol.
        encoder: name of the encoder.
        train: name of the training set; "" for none.
        test: name of the test set.
        rows: "setting", "metric", "value", "low" and "high" (95 % confidence interval or None), and
            "chance" where it is known; of accuracies "balanced", the mean over the classes.
        best: the row that represents the encoder.
        notes: remarks on data and settings.
    """

    protocol: str
    encoder: str
    train: str
    test: str
    rows: tuple[Mapping[str, Any], ...]
    best: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Dictionary for `--json`; accuracies are in 0..1."""
        out: dict[str, Any] = {
            "protocol": self.protocol,
            "encoder": self.encoder,
            "train": self.train,
            "test": self.test,
            "rows": [dict(r) for r in self.rows],
            "best": dict(self.best),
        }
        if self.notes:
            out["notes"] = list(self.notes)
        return out

    def __str__(self) -> str:
        train = f"train {self.train}, " if self.train else ""
        lines = [f"{self.protocol}  {self.encoder}  ({train}test {self.test})"]
        for r in self.rows:
            mark = " *" if represents(r, self.best) else ""
            interval = f"  [{r['low']:.1%}, {r['high']:.1%}]" if r.get("low") is not None else ""
            chance = f"  chance {r['chance']:.2%}" if "chance" in r else ""
            if abs(r.get("balanced", r["value"]) - r["value"]) > _SAME:
                chance += f"  balanced {r['balanced']:.2%}"
            lines.append(
                f"  {r['setting']:<28} {r['metric']:<6} {r['value']:7.2%}{interval}{chance}{mark}"
            )
        lines += [f"  note: {n}" for n in self.notes]
        return "\n".join(lines)

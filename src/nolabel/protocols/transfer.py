"""Transfer: one encoder on several labelled sets, each with its own training split.

The table of papers that compare encoders over many sets (Kornblith et al., "Do Better ImageNet
Models Transfer Better?", 2018, arXiv 1805.08974): accuracy on every set and the plain mean over
sets, which has no interval, since sets are no sample of anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.errors import UsageError, unknown
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols.report import Report
from nolabel.protocols.run import open_sets, run

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec
    from nolabel.data.source import Source

JUDGES = ("knn", "linear", "fewshot")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the transfer protocol."""

    judges: tuple[str, ...] = ("knn", "linear")  # of knn, linear, fewshot
    batch_size: int = 256  # images embedded at once

    def __post_init__(self) -> None:
        as_tuples(self, "judges")
        for name in self.judges:
            if name not in JUDGES:
                raise unknown("judge", name, JUDGES)
        if not self.judges:
            raise UsageError("Give one judge or more.")
        at_least(self, batch_size=1)


def open_test(test: str | Sequence[SourceSpec], encoder: Encoder) -> tuple[SourceSpec, ...]:
    """The sets: a list of SRC, or one text with commas between them."""
    sets = [s.strip() for s in test.split(",")] if isinstance(test, str) else list(test)
    if not sets or any(isinstance(s, str) and not s for s in sets):
        raise UsageError("Give the sets with commas between them: --test digits,fashion-mnist.")
    return tuple(sets)


def run_transfer(
    encoder: Encoder,
    train: Source | None,
    test: Sequence[SourceSpec],
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Judges an encoder on every set.

    Args:
        encoder: the encoder.
        train: not used.
        test: what `open_test` returns.
        features: not used.
        **options: fields of `Options`.

    Raises:
        DataError, UsageError: as `nolabel.protocols.run.evaluate`, for any of the sets.
    """
    o = build_options(Options, options)
    size, channels = encoder.image_size, encoder.channels
    opened = [open_sets(s, image_size=size, channels=channels) for s in test]  # before the work
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for learned, judged, said in opened:
        pair = (
            extract(encoder, learned, batch_size=o.batch_size),
            extract(encoder, judged, batch_size=o.batch_size),
        )
        for name in o.judges:
            report = run(name, encoder, learned, judged, features=pair)
            row = dict(report.best)
            row["metric"] = f"{name} {row['setting']}"
            rows.append({**row, "setting": judged.name})
        notes += [f"{learned.name}: {n}" for n in said]
    for name in o.judges:
        values = [r["value"] for r in rows if r["metric"].startswith(name)]
        rows.append({"setting": "mean over sets", "metric": name, "low": None, "high": None,
                     "value": sum(values) / len(values)})  # fmt: skip
    return Report(
        protocol="transfer", encoder=encoder.name, train="", test=", ".join(map(str, test)),
        rows=tuple(rows), best=rows[-len(o.judges)], notes=tuple(notes),
    )  # fmt: skip

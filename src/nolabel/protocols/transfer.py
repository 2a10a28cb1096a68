"""Transfer: one encoder on several labelled sets, each with its own training split.

The usual comparison of encoders over many sets (Kornblith et al., "Do Better ImageNet Models
Transfer Better?", 2018, arXiv 1805.08974): accuracy on every set and the unweighted mean over sets.
The mean has no confidence interval, because the sets are not a random sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nolabel.data.readable import describe_skipped
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, extract
from nolabel.errors import UsageError, unknown
from nolabel.protocols._options import as_tuples, at_least, build_options
from nolabel.protocols.report import Report
from nolabel.protocols.run import run
from nolabel.protocols.sets import open_sets

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec
    from nolabel.data.source import Source

PROTOCOLS = ("knn", "linear", "fewshot")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the transfer protocol."""

    protocols: tuple[str, ...] = ("knn", "linear")  # of knn, linear, fewshot
    batch_size: int = 256  # images in a forward pass

    def __post_init__(self) -> None:
        as_tuples(self, "protocols")
        for name in self.protocols:
            if name not in PROTOCOLS:
                raise unknown("protocol of transfer", name, PROTOCOLS)
        if not self.protocols:
            raise UsageError(f"protocols is empty; give one or more of {', '.join(PROTOCOLS)}.")
        at_least(self, batch_size=1)


def open_test(test: str | Sequence[SourceSpec], encoder: Encoder) -> tuple[SourceSpec, ...]:
    """Splits the names of the sets.

    Args:
        test: a list of SRC, or one text with commas between them.
        encoder: not used.

    Raises:
        UsageError: no set, or an empty name.
    """
    sets = [s.strip() for s in test.split(",")] if isinstance(test, str) else list(test)
    if not sets or any(isinstance(s, str) and not s for s in sets):
        raise UsageError(
            f"The test sets are SRC with commas between them, such as --test digits,fashion-mnist; "
            f"got {test!r}."
        )
    return tuple(sets)


def run_transfer(
    encoder: Encoder,
    train: Source | None,
    test: Sequence[SourceSpec],
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Evaluates an encoder on every set.

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
    opened = [
        open_sets(s, image_size=size, channels=channels) for s in test
    ]  # fail before features are computed
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for train_set, test_set, split_notes in opened:
        features_of_set = (
            extract(encoder, train_set, batch_size=o.batch_size),
            extract(encoder, test_set, batch_size=o.batch_size),
        )
        for name in o.protocols:
            report = run(name, encoder, train_set, test_set, features=features_of_set)
            row = dict(report.best)
            row["metric"] = f"{name} {row['setting']}"
            rows.append({**row, "setting": test_set.name})
        notes += [f"{train_set.name}: {n}" for n in split_notes]
        for source, found in zip((train_set, test_set), features_of_set, strict=True):
            notes += describe_skipped(source.name, found.skipped)
    for name in o.protocols:
        values = [r["value"] for r in rows if r["metric"].startswith(name)]
        rows.append({"setting": "mean over sets", "metric": name, "low": None, "high": None,
                     "value": sum(values) / len(values)})  # fmt: skip
    return Report(
        protocol="transfer", encoder=encoder.name, train="", test=", ".join(map(str, test)),
        rows=tuple(rows), best=rows[-len(o.protocols)], notes=tuple(notes),
    )  # fmt: skip

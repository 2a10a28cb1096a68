"""`evaluate_all`: every protocol that applies to an encoder and the data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nolabel.data.readable import describe_skipped, leave_out_unreadable
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import Features, extract
from nolabel.errors import DataError, UsageError
from nolabel.protocols.report import Report
from nolabel.protocols.run import PROTOCOLS, open_test, run
from nolabel.protocols.sets import open_sets

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec
    from nolabel.protocols.run import TestSet

_LEFT_OUT = {
    "transfer": "it takes several sets; run it by name",
    "finetune": "it trains the network, which takes long; run it by name",
}


@dataclass(frozen=True)
class ReportSet:
    """Reports of the protocols that apply, and why the others do not.

    Attributes:
        reports: one for each protocol.
        left_out: (protocol, reason) of the others.
    """

    reports: tuple[Report, ...]
    left_out: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for `--json`."""
        return {
            "reports": [r.to_json() for r in self.reports],
            "left_out": [{"protocol": n, "reason": r} for n, r in self.left_out],
        }

    def __str__(self) -> str:
        lines = [str(r) for r in self.reports]
        lines += [f"left out: {n}: {r}" for n, r in self.left_out]
        return "\n".join(lines)


def evaluate_all(
    encoder: Encoder | str | os.PathLike[str],
    train: SourceSpec,
    test: SourceSpec | None = None,
) -> ReportSet:
    """Runs every protocol with its defaults; features are computed once.

    Args:
        encoder: an encoder, or what `nolabel.encoders.load` takes.
        train: labelled images, as `evaluate` takes them.
        test: as `evaluate` takes it.

    Raises:
        UsageError, DataError: the sets cannot be opened, or no protocol applies.
    """
    e = encoder if isinstance(encoder, Encoder) else load(str(encoder))
    train_set, test_set, notes = open_sets(
        train, test, image_size=e.image_size, channels=e.channels
    )
    train_set, skipped = leave_out_unreadable(train_set)
    test_set, skipped_test = leave_out_unreadable(test_set)
    notes = (
        *notes,
        *describe_skipped(train_set.name, skipped),
        *describe_skipped(test_set.name, skipped_test),
    )
    features: tuple[Features, Features] | None = None
    reports, left_out = [], [(n, r) for n, r in _LEFT_OUT.items() if n in PROTOCOLS]
    for name, p in PROTOCOLS.items():
        if name in _LEFT_OUT:
            continue
        try:
            data: TestSet = test_set
            if p.test_set == "own":
                data = open_test(name, e, train if test is None else test)
            if p.takes_features and features is None:
                features = (extract(e, train_set), extract(e, test_set))
            pair = features if p.takes_features else None
            reports.append(run(name, e, train_set, data, features=pair, notes=notes))
        except (UsageError, DataError) as error:
            left_out.append((name, str(error).split("\n")[0]))
    if not reports:
        raise DataError(
            f"No protocol applies to {e.name!r} and these data. The last reason: {left_out[-1][1]}"
        )
    return ReportSet(tuple(reports), tuple(left_out))

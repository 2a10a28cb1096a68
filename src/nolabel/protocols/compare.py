"""Several encoders in one table, on the same images, splits and seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nolabel.data.open import open_source
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import Features, extract
from nolabel.errors import UsageError
from nolabel.protocols.report import Report
from nolabel.protocols.run import find, make_options, open_sets, open_test, run

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Reports of several encoders on the same data."""

    train: str
    test: str
    reports: tuple[Report, ...]  # encoder by encoder, and within it protocol by protocol
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows; `best` marks the setting that stands for the encoder in its protocol."""
        return [
            {
                "encoder": report.encoder,
                "protocol": report.protocol,
                **row,
                "best": row["setting"] == report.best.get("setting"),
            }
            for report in self.reports
            for row in report.rows
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary as documented for `--json`: fractions of one."""
        return {
            "train": self.train,
            "test": self.test,
            "rows": self.rows,
            "reports": [report.to_json() for report in self.reports],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        title = f"train {self.train}, test {self.test}" if self.train else f"test {self.test}"
        header = ("encoder", "protocol", "setting", "metric", "value", "95 % interval")
        table = [
            (
                row["encoder"],
                row["protocol"],
                f"{row['setting']}{' *' if row['best'] else ''}",
                row["metric"],
                f"{row['value']:.2%}",
                "" if row.get("low") is None else f"{row['low']:.1%} - {row['high']:.1%}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *table]) for i in range(len(header))]
        lines = [title]
        for line in (header, *table):
            cells = (
                c.rjust(w) if i == 4 else c.ljust(w)
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            lines.append("  ".join(cells).rstrip())
        legend = "* stands for the encoder; intervals cover the chance of the test images only"
        return "\n".join([*lines, *(f"note: {n}" for n in (*self.notes, legend))])


def compare(
    encoders: Sequence[str | os.PathLike[str] | Encoder],
    train: SourceSpec | None = None,
    test: SourceSpec | None = None,
    protocols: Sequence[str] = (),
    *,
    options: Mapping[str, Mapping[str, object]] | None = None,
    image_size: int | None = None,
    device: str = "auto",
    batch_size: int = 256,
) -> Comparison:
    """Judges several encoders on the same images.

    Args:
        encoders: encoders, or what `nolabel.encoders.load` takes.
        train: labelled images, as `evaluate` takes them; None for protocols that learn nothing.
        test: as `evaluate` takes it.
        protocols: names in `PROTOCOLS`; by default knn, and labelfree where nothing is learnt from.
        options: protocol -> its options.
        image_size: side in pixels for `pixels` and `random:NAME`, and at which `creatures` are
            drawn. None is the side of the first encoder that has one of its own.
        device: for encoders that are loaded here.
        batch_size: images embedded at once.

    Raises:
        UsageError: no encoder or protocol; or as `evaluate`.
        DataError: as `evaluate`.
    """
    if not encoders or isinstance(encoders, str | os.PathLike):
        raise UsageError("Give a list of encoders to compare, such as ['runs/dino', 'pixels'].")
    protocols = [protocols] if isinstance(protocols, str) else list(protocols)
    if not protocols:
        protocols = ["labelfree" if train is None else "knn"]
    learning = [name for name in protocols if find(name).learns]
    tested = train if test is None else test
    if tested is None or (train is None and learning):
        raise UsageError(
            f"{' and '.join(learning) or 'A comparison'} needs --train, labelled images to learn "
            "from. Without labels: --test SRC --protocols labelfree."
        )
    chosen = {name: make_options(name, (options or {}).get(name, {})) for name in protocols}
    size, loaded = image_size, {}
    for i, spec in enumerate(encoders):
        if not _is_baseline(spec):
            loaded[i] = load(spec, device=device)
            size = size or loaded[i].image_size
    channels = {e.channels for e in loaded.values()} or {3}
    if len(channels) > 1:
        raise UsageError(
            f"These encoders take images of different channels ({sorted(channels)}), so no data "
            "suit all of them. Compare those of one kind."
        )
    c = channels.pop()
    train_set, notes = None, ()
    if train is None:
        test_set = open_source(tested, image_size=size, split_default="test", channels=c)
    else:
        train_set, test_set, notes = open_sets(train, test, image_size=size, channels=c)
    reports: list[Report] = []
    for i, spec in enumerate(encoders):
        encoder = loaded.pop(i, None) or load(spec, image_size=size, device=device, channels=c)
        features: tuple[Features, Features] | None = None
        for name in protocols:
            if train_set is not None and features is None and find(name).takes_features:
                features = (
                    extract(encoder, train_set, batch_size=batch_size),
                    extract(encoder, test_set, batch_size=batch_size),
                )
            own = find(name).test_set == "own"  # the set is opened in the protocol's own way
            judged = open_test(name, encoder, tested) if own else None
            reports.append(
                run(name, encoder, train_set, judged or test_set, options=chosen[name],
                    features=features)
            )  # fmt: skip
    learnt = "" if train_set is None else train_set.name
    return Comparison(train=learnt, test=test_set.name, reports=tuple(reports), notes=notes)


def _is_baseline(spec: str | os.PathLike[str] | Encoder) -> bool:
    """Whether an encoder has no image size of its own."""
    if isinstance(spec, Encoder):
        return False
    text = os.fspath(spec)
    return text == "pixels" or (text.startswith("random:") and not os.path.exists(text[7:]))

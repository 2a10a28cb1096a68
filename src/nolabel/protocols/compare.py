"""Several encoders in one table, on the same images, splits and seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nolabel._files import write_text
from nolabel.data.open import open_source
from nolabel.data.readable import describe_skipped, leave_out_unreadable
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import Features, extract
from nolabel.errors import UsageError
from nolabel.protocols.report import Report, represents
from nolabel.protocols.run import find, make_options, open_test, run
from nolabel.protocols.sets import open_sets

if TYPE_CHECKING:
    from nolabel.data.open import SourceSpec
    from nolabel.data.source import Source


COMPARISON = "comparison.json"  # in the folder of a run


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Reports of several encoders on the same data.

    Attributes:
        train: name of the training set; "" for none.
        test: name of the test set.
        reports: sorted by encoder, then by protocol.
        notes: remarks on the data.
    """

    train: str
    test: str
    reports: tuple[Report, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of all reports; `best` marks the setting that represents the encoder."""
        return [
            {
                "encoder": report.encoder,
                "protocol": report.protocol,
                **row,
                "best": represents(row, report.best),
            }
            for report in self.reports
            for row in report.rows
        ]

    def to_json(self) -> dict[str, Any]:
        """Dictionary for `--json`; accuracies are in 0..1."""
        return {
            "train": self.train,
            "test": self.test,
            "rows": self.rows,
            "reports": [report.to_json() for report in self.reports],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return self.table()

    def table(self, every: bool = False) -> str:
        """The comparison as text.

        Args:
            every: all settings; otherwise the one that represents each encoder, with chance.
        """
        title = f"train {self.train}, test {self.test}" if self.train else f"test {self.test}"
        header = ("encoder", "protocol", "setting", "metric", "value", "95 % interval", "chance")
        shown = [row for row in self.rows if every or row["best"]]
        table = [
            (
                row["encoder"],
                row["protocol"],
                f"{row['setting']}{' *' if every and row['best'] else ''}",
                row["metric"],
                f"{row['value']:.2%}",
                "" if row.get("low") is None else f"{row['low']:.1%} - {row['high']:.1%}",
                f"{row['chance']:.1%}" if "chance" in row else "",
            )
            for row in shown
        ]
        widths = [max(len(line[i]) for line in [header, *table]) for i in range(len(header))]
        kept = [i for i in range(len(header)) if any(line[i] for line in table)]
        lines = [title]
        for line in (header, *table):
            cells = (line[i].rjust(widths[i]) if i in (4, 6) else line[i].ljust(widths[i])
                     for i in kept)  # fmt: skip
            lines.append("  ".join(cells).rstrip())
        notes = [*self.notes, "intervals cover the sampling of the test images only"]
        if every:
            notes.append("* represents the encoder")
        elif len(self.rows) > len(shown):
            notes.append("one setting of each protocol, fixed beforehand; --all shows the others")
        return "\n".join([*lines, *(f"note: {n}" for n in notes)])


def save_in_runs(
    comparison: Comparison, encoders: Sequence[str | os.PathLike[str] | Encoder]
) -> list[Path]:
    """Writes a comparison into the folder of each run that it holds, for the run's report.

    Args:
        comparison: of the encoders.
        encoders: as they were given to `compare`, in the same order.

    Returns:
        The files. A folder that cannot be written to is left out.
    """
    paths: list[Path] = []
    protocols = len(comparison.reports) // len(encoders)
    for i, spec in enumerate(encoders):
        if isinstance(spec, Encoder) or not (Path(spec) / "config.yaml").is_file():
            continue
        path = Path(spec) / COMPARISON
        name = comparison.reports[i * protocols].encoder
        text = json.dumps({"run": name, **comparison.to_json()}, indent=2) + "\n"
        try:
            write_text(path, text)
        except OSError:
            continue
        paths.append(path)
    return paths


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
    """Evaluates several encoders on the same images.

    Args:
        encoders: encoders, or what `nolabel.encoders.load` takes.
        train: labelled images, as `evaluate` takes them; None for protocols without training.
        test: as `evaluate` takes it.
        protocols: names in `PROTOCOLS`; by default knn, or labelfree without `train`.
        options: protocol -> {option: value}.
        image_size: side in pixels for `pixels` and `random:NAME`, and at which `creatures` are
            drawn. None is the side of the first encoder that has one of its own.
        device: device of the encoders that are loaded here.
        batch_size: images in a forward pass.

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
    test_spec = train if test is None else test
    if test_spec is None or (train is None and learning):
        raise UsageError(
            f"{' and '.join(learning) or 'A comparison'} needs --train, labelled images to learn "
            "from. Without labels: --test SRC --protocols labelfree."
        )
    checked = {name: make_options(name, (options or {}).get(name, {})) for name in protocols}
    size, loaded = image_size, {}
    for i, spec in enumerate(encoders):
        if not _is_baseline(spec):
            loaded[i] = load(spec, device=device)
            size = size or loaded[i].image_size
    channels = {e.channels for e in loaded.values()} or {3}
    if len(channels) > 1:
        raise UsageError(
            f"These encoders take images of different numbers of channels ({sorted(channels)}), so "
            "no data fit all of them. Compare encoders of the same number of channels."
        )
    channel_count = channels.pop()
    train_set, test_set, notes = _open_readable(train, test, test_spec, size, channel_count)
    reports: list[Report] = []
    for i, spec in enumerate(encoders):
        encoder = loaded.pop(i, None) or load(
            spec, image_size=size, device=device, channels=channel_count
        )
        features: tuple[Features, Features] | None = None
        for name in protocols:
            if train_set is not None and features is None and find(name).takes_features:
                features = (
                    extract(encoder, train_set, batch_size=batch_size),
                    extract(encoder, test_set, batch_size=batch_size),
                )
            own_layout = find(name).test_set == "own"  # data that only this protocol can open
            own_test = open_test(name, encoder, test_spec) if own_layout else None
            reports.append(
                run(name, encoder, train_set, own_test or test_set, options=checked[name],
                    features=features)
            )  # fmt: skip
    train_name = "" if train_set is None else train_set.name
    return Comparison(train=train_name, test=test_set.name, reports=tuple(reports), notes=notes)


def _open_readable(
    train: SourceSpec | None,
    test: SourceSpec | None,
    only: SourceSpec,
    image_size: int | None,
    channels: int,
) -> tuple[Source | None, Source, tuple[str, ...]]:
    """Train and test without what cannot be read, and notes; without train, `only` is the test."""
    if train is None:
        whole = open_source(only, image_size=image_size, split_default="test", channels=channels)
        test_set, skipped = leave_out_unreadable(whole)
        return None, test_set, (*whole.notes, *describe_skipped(test_set.name, skipped))
    train_set, test_set, notes = open_sets(train, test, image_size=image_size, channels=channels)
    train_set, skipped = leave_out_unreadable(train_set)
    notes = (*notes, *describe_skipped(train_set.name, skipped))
    test_set, skipped = leave_out_unreadable(test_set)
    return train_set, test_set, (*notes, *describe_skipped(test_set.name, skipped))


def _is_baseline(spec: str | os.PathLike[str] | Encoder) -> bool:
    """Whether an encoder has no image size of its own: `pixels` and `random:NAME`."""
    if isinstance(spec, Encoder):
        return False
    text = os.fspath(spec)
    return text == "pixels" or (text.startswith("random:") and not os.path.exists(text[7:]))

"""`nolabel worth`: is self-supervision on these data worth it?

Accuracy over label budgets, from a few labels of each class to all of them, of

    pixels       raw pixels
    random       the network before training
    trained      the network pre-trained here, without labels
    supervised   the same network, trained from its random start on the labels alone
    public       published encoders, if any are named

The first three and the last are frozen: a logistic regression on their features learns the labels,
as in `evaluate fewshot`. Nothing is fetched unless a public encoder is named.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image

from nolabel import limits
from nolabel._files import atomic, check_folder, write_text
from nolabel.config import Request, Run
from nolabel.data.order import evenly_spaced
from nolabel.data.source import Source, Subset, require_labels
from nolabel.encoders import load
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import extract
from nolabel.engine.fit import automatic_method
from nolabel.engine.log import say
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.saved_run import load_run
from nolabel.engine.train import pretrain
from nolabel.errors import NolabelError
from nolabel.pictures._tiles import chart
from nolabel.protocols._scores import interval, labelled_features
from nolabel.protocols.fewshot import classify, draw_few, run_fewshot
from nolabel.protocols.finetune import run_finetune
from nolabel.protocols.sets import open_sets

BUDGETS = (5, 10, 20, 50, 100, 200, 500, 1000)  # labels of each class, and then all
DRAWS = 5  # of the labelled images, for each budget
STRENGTH = 10.0  # of the logistic regression: 1 / its L2 penalty
MOST_LABELLED = 10_000  # images of the largest budget
TRAINING, SUPERVISED = 0.6, 0.25  # shares of the minutes; the rest is for features
EPOCHS = (5, 60)  # least and most of a supervised training
GAIN = 0.02  # smaller differences are taken as none
FROZEN = ("pixels", "random", "trained")


@dataclass(frozen=True)
class Point:
    """An accuracy at a label budget."""

    curve: str
    labels: int  # in total
    per_class: int  # 0: all
    value: float  # fraction
    low: float  # 95 % interval: over the draws, or of the test set where there is one draw
    high: float


def worth(
    data: str,
    labels: str,
    *,
    test: str | None = None,
    out: str | Path = "worth",
    minutes: float = 20.0,
    run: str | Path | None = None,
    public: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Measures what pre-training brings, over label budgets.

    Args:
        data: SRC without labels, to pre-train on.
        labels: SRC with labels; a fifth of it is for testing if there is no `test`.
        test: SRC with labels of the same classes.
        out: folder for the run, worth.json and worth.png; a finished run in it is taken again.
        minutes: length of it all; most of it is pre-training.
        run: folder of a finished run, instead of pre-training.
        public: encoders (ENC) to compare with; those that cannot be loaded are left out.
        settings: options of `pretrain`.

    Returns:
        What worth.json holds: verdict, points, test images, notes.

    Raises:
        UsageError, DataError: data, labels or test cannot be used.
    """
    folder = Path(out)
    check_folder(folder)
    limits.positive("--minutes", minutes)
    limits.positive("--steps", settings.get("steps"))
    train, test_set, notes = open_sets(labels, test)
    require_labels(train)
    publics, left_out = _public(public)
    trained = _trained(data, folder, minutes, run, settings)
    size = trained.settings.image_size
    encoders = {
        "pixels": load("pixels"),
        "random": load(f"random:{trained.folder}", image_size=size),
        "trained": load(str(trained.folder), image_size=size),
        **publics,
    }
    points = [p for name, e in encoders.items() for p in _frozen(name, e, train, test_set)]
    points += _supervised(encoders["random"], trained, train, test_set, minutes)
    result = {
        "verdict": verdict(points, publics),
        "run": str(trained.folder),
        "train_images": len(train),
        "test_images": len(test_set),
        "notes": [*notes, *left_out],
        "points": [dataclasses.asdict(p) for p in points],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "worth.json", json.dumps(result, indent=1) + "\n")
    with atomic(folder / "worth.png") as file:
        Image.fromarray(draw(points)).save(file, "PNG")
    return result


def _public(names: Sequence[str]) -> tuple[dict[str, Encoder], list[str]]:
    """The encoders that can be loaded, before anything is trained, and notes on the others."""
    found: dict[str, Encoder] = {}
    notes = []
    for name in names:
        try:
            found[name] = load(name)
        except NolabelError as error:
            notes.append(f"{name} is left out: {error}")
    return found, notes


def _trained(
    data: str, folder: Path, minutes: float, run: str | Path | None, settings: Mapping[str, Any]
) -> Run:
    """The pre-trained run: the one that is given, a finished one in the folder, or a new one."""
    if run is not None:
        return load_run(run).with_settings(out=str(run))
    place = folder / "run"
    if (place / "encoder.safetensors").is_file():
        say(f"{place} holds a run; it is taken as it is")
        return load_run(place).with_settings(out=str(place))
    method = str(settings.get("method") or automatic_method()[0])
    given = {k: v for k, v in settings.items() if k != "method" and v is not None}
    if not {"steps", "epochs"} & given.keys():
        given["minutes"] = TRAINING * minutes
    return pretrain(Request.of(method, data=data, out=str(place), **given))


def budgets(train: Source) -> list[int]:
    """Labels of each class: those of `BUDGETS` below the smallest class, then 0 for all."""
    smallest = int(np.unique(require_labels(train), return_counts=True)[1].min())
    return [*(k for k in BUDGETS if k < smallest), 0]


def _frozen(name: str, encoder: Encoder, train: Source, test_set: Source) -> list[Point]:
    """The curve of a frozen encoder: `evaluate fewshot`, and its classifier with all labels."""
    features = extract(encoder, train), extract(encoder, test_set)
    known, unknown, _, _ = labelled_features(encoder, train, test_set, features, 256)
    assert known.labels is not None and unknown.labels is not None  # noqa: S101
    y, truth = known.labels.numpy(), unknown.labels.numpy()
    points = []
    if few := tuple(k for k in budgets(train) if k):
        report = run_fewshot(
            encoder, train, test_set, features=features, k=few, draws=DRAWS, strength=STRENGTH
        )
        found = {row["setting"]: row for row in report.rows}
        for k in few:
            if row := found.get(f"k={k}"):
                low, high = interval(row["value"], len(truth))
                low, high = min(row["low"], low), max(row["high"], high)
                points.append(Point(name, k * len(np.unique(y)), k, row["value"], low, high))
    x, z = (F.normalize(f.values, dim=1).numpy() for f in (known, unknown))
    rows = evenly_spaced(len(y), MOST_LABELLED)
    right = float((classify(x[rows], y[rows], z, "logistic", STRENGTH) == truth).mean())
    return [*points, Point(name, len(rows), 0, right, *interval(right, len(truth)))]


def _supervised(
    start: Encoder, run: Run, train: Source, test_set: Source, minutes: float
) -> list[Point]:
    """The network trained on labels alone: with the fewest, a middle budget, and all."""
    if start.channels != 3:
        return []
    lines = list(read_metrics(run.folder / "metrics.jsonl"))
    rate = (lines[-1].get("images_per_second") if lines else None) or 100.0
    chosen = budgets(train)
    chosen = sorted({chosen[0], chosen[len(chosen) // 2], 0}, key=lambda k: k or np.inf)
    images = 60 * SUPERVISED * minutes / len(chosen) * rate  # one view an image, not two
    points = []
    y = require_labels(train)
    members = [np.flatnonzero(y == c) for c in np.unique(y)]
    for per_class in chosen:
        everything = evenly_spaced(len(train), MOST_LABELLED)
        rows = draw_few(members, per_class, (0, per_class, 0)) if per_class else everything
        epochs = int(min(max(images / len(rows), EPOCHS[0]), EPOCHS[1]))
        report = run_finetune(
            start, Subset(train, rows), test_set, epochs=epochs, layer_decay=1.0,
            batch=min(64, max(len(rows) // 4, 2)),
        )  # fmt: skip
        value = float(report.best["value"])
        points.append(
            Point("supervised", len(rows), per_class, value, *interval(value, len(test_set)))
        )
    return points


def verdict(points: Sequence[Point], public: Mapping[str, Encoder] | Sequence[str] = ()) -> str:
    """One sentence: whether pre-training helps, up to how many labels, and what is better.

    Args:
        points: of all curves.
        public: names of the curves of published encoders.
    """
    at = {(p.curve, p.per_class): p for p in points}
    few = min((p.per_class for p in points if p.per_class), default=0)
    name = f"{few} labels a class" if few else "all labels"
    own = at["trained", few]
    others = [at[c, few] for c in ("pixels", "random", "supervised") if (c, few) in at]
    best = max(others, key=lambda p: p.value)
    if own.value > best.value + GAIN and own.low > best.value:
        shared = sorted(
            (p.per_class or np.inf, p) for p in points
            if p.curve == "supervised" and ("trained", p.per_class) in at
        )  # fmt: skip
        wins = [k for k, p in shared if at["trained", p.per_class].value > p.value + GAIN]
        until = "" if not shared else (
            ", and it stays ahead of supervised training with all labels" if np.inf in wins
            else f", and ahead of supervised training up to {max(wins):.0f} a class" if wins
            else ""
        )  # fmt: skip
        text = (
            f"Worth it: with {name} the encoder trained here reaches {own.value:.1%}, against "
            f"{best.value:.1%} of {best.curve}{until}."
        )
    else:
        text = (
            f"Not worth it yet: with {name} the encoder trained here reaches {own.value:.1%}, "
            f"{best.curve} {best.value:.1%}. A longer run or more images may change that."
        )
    ahead = [at[c, few] for c in public if at[c, few].value > own.value + GAIN]
    if ahead:
        first = max(ahead, key=lambda p: p.value)
        text += f" The published {first.curve} is better: {first.value:.1%}."
    return text


def draw(points: Sequence[Point]) -> np.ndarray:
    """The curves with their 95 % intervals, uint8 [H, W, 3]."""
    totals = sorted({p.labels for p in points})
    curves = list(dict.fromkeys(p.curve for p in points))
    series = []
    for curve in curves:
        own = sorted((p for p in points if p.curve == curve), key=lambda p: p.labels)
        x = np.array([totals.index(p.labels) for p in own])
        series.append((curve, x, np.array([100 * p.value for p in own]), "o-"))
    bands = [
        [(totals.index(p.labels), 100 * p.low, 100 * p.high) for p in points if p.curve == curve]
        for curve in curves
    ]
    names = [f"{n:,}" for n in totals]
    return chart(series, "labelled images", "accuracy in per cent", names=names, bands=bands)


def describe(result: Mapping[str, Any]) -> str:
    """The outcome as lines to read: a table, and the verdict first."""
    points = [Point(**p) for p in result["points"]]
    totals = sorted({(p.per_class or 10**9, p.labels) for p in points})
    curves = list(dict.fromkeys(p.curve for p in points))
    width = max(len(c) for c in curves)
    heads = [f"{'all' if k == 10**9 else f'{k}/class':>16}" for k, _ in totals]
    lines = [result["verdict"], "", " " * (width + 2) + "".join(heads)]
    at = {(p.curve, p.labels): p for p in points}
    for curve in curves:
        cells = []
        for _, n in totals:
            p = at.get((curve, n))
            text = "" if p is None else f"{p.value:.1%} [{100 * p.low:.0f},{100 * p.high:.0f}]"
            cells.append(f"{text:>16}")
        lines.append(f"  {curve:<{width}}" + "".join(cells))
    lines.append(f"{result['test_images']:,} test images; brackets: 95 % intervals")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)

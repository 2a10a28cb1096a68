"""Ablations: one setting of a method changed at a time, with equal budgets and seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from nolabel import methods
from nolabel._files import LOCK, Lock, read_json, write_text
from nolabel.config import Request
from nolabel.data.identity import data_digest
from nolabel.data.open import DATASETS, open_source
from nolabel.data.source import require_labels
from nolabel.engine.fit import fit
from nolabel.engine.log import say
from nolabel.engine.train import pretrain
from nolabel.errors import UsageError
from nolabel.methods.base import Method
from nolabel.protocols.run import evaluate


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % confidence interval (Student's t) over seeds; NaN bounds for one value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan, math.nan
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = spread * float(stats.t.ppf(0.975, n - 1))
    return mean, mean - half, mean + half


def ablate(
    method: str,
    *,
    data: str,
    test: str | None = None,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: int = 3,
    out: str | Path = "",
    **settings: object,
) -> list[dict[str, Any]]:
    """Trains the method unchanged and once for each row of a table, and measures k-NN.

    Args:
        method: name or path/to/file.py:Class.
        data: SRC to train on; its labels, or those of `test`, are used for measuring only.
        test: SRC with labels to test on; by default the set's test split, or a fifth of it.
        rows: name -> options to change; None takes the method's own table `ablations`.
        seeds: runs of each row.
        out: folder for the runs and `ablation.json`, which is rewritten after every run, so that
            a stopped ablation can be continued, on the same images.
        settings: further options of `pretrain`, equal for all rows; give a length (`steps` makes
            the budgets equal in steps, `minutes` in time).

    Returns:
        One dictionary per row: row, change, values (k-NN top-1 of each seed), mean, low, high.

    Raises:
        UsageError: the method has no table and none was given; or another process writes into the
            folder.
    """
    variant = methods.with_ablations(method)
    method_class = methods.load(variant)
    table = dict(method_class.ablations if rows is None else rows)
    if not table:
        raise UsageError(
            f"{method!r} has no table of ablations. Give rows of your own: --rows with options "
            "such as 'temperature=0.2'."
        )
    if not {"steps", "minutes", "epochs"} & settings.keys():
        settings["minutes"] = 2.0
    # One network for all rows: where it is chosen by the time, it is chosen once.
    request, _, _, choice = fit(Request.of(variant, data=data, **settings))
    if choice is not None:
        settings = {**request.chosen.settings, **settings}
    table = {"as it is": {}, **table}
    folder = Path(out or f"runs/ablate-{method}")
    with Lock(folder / LOCK, f"the ablation in {folder}"):
        return _rows(method, variant, table, data, test, seeds, folder, settings)


def _rows(
    method: str,
    variant: str,
    table: Mapping[str, Mapping[str, Any]],
    data: str,
    test: str | None,
    seeds: int,
    folder: Path,
    settings: dict[str, Any],
) -> list[dict[str, Any]]:
    """Trains and measures all rows, while no other process writes into the folder."""
    train, test_set = _sources(data, test)
    download = bool(settings.get("download"))
    source = open_source(train, download=download)
    require_labels(source)
    file = folder / "ablation.json"
    request = {
        "method": method, "data": data, "test": test, "settings": _plain(settings),
        "digests": [data_digest(source)],
    }  # fmt: skip
    if test_set is not None:
        request["digests"].append(data_digest(open_source(test_set, download=download)))
    finished = _finished(file, request)
    results: list[dict[str, Any]] = []
    total, began = len(table) * seeds, time.monotonic()
    for name, change in table.items():
        values = list(finished.get(json.dumps([name, _plain(change)]), ()))[:seeds]
        for seed in range(len(values), seeds):
            run = _train(variant, folder / f"{_slug(name)}-{seed}", data, settings, change, seed)
            row = evaluate("knn", run, train=train, test=test_set).best
            values.append(float(row["value"]))
            done = len(results) * seeds + len(values)
            spent = time.monotonic() - began
            say(f"{done}/{total}  {name}, seed {seed}: {values[-1]:.1%}  ({spent:.0f} s so far)")
            _write(file, request, [*results, _row(name, change, values)])
        results.append(_row(name, change, values))
    _write(file, request, results)
    return results


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as text: k-NN top-1, mean and 95 % interval over seeds, against the first row."""
    first = rows[0]["mean"]
    lines = [f"  {'row':<34} {'k-NN':>6}  {'95 % over seeds':<16} change"]
    for r in rows:
        span = "" if math.isnan(r["low"]) else f"[{r['low']:.1%}, {r['high']:.1%}]"
        gap = "" if r is rows[0] else f"{100 * (r['mean'] - first):+.1f}"
        lines.append(f"  {r['row']:<34} {r['mean']:>6.1%}  {span:<16} {gap:>5}")
    return "\n".join(lines)


def parse_rows(texts: Sequence[str], method_class: type[Method]) -> dict[str, dict[str, Any]]:
    """Rows from texts such as "temperature=0.2 queue=128", typed like the method's options."""
    import yaml

    names = {f.name for f in dataclasses.fields(method_class.Options)}
    rows: dict[str, dict[str, Any]] = {}
    for text in texts:
        row: dict[str, Any] = {}
        for part in text.split():
            key, equals, value = part.partition("=")
            key = key.replace("-", "_")
            if not equals or key not in names:
                raise UsageError(
                    f"{part!r} is no option=value of the method. Options: "
                    f"{', '.join(sorted(names))}."
                )
            row[key] = yaml.safe_load(value)
        rows[text] = row
    return rows


def _sources(data: str, test: str | None) -> tuple[str, str | None]:
    named = data in DATASETS
    return (f"{data}:train", test or f"{data}:test") if named else (data, test)


def _train(
    method: str,
    out: Path,
    data: str,
    settings: dict[str, Any],
    change: Mapping[str, Any],
    seed: int,
) -> str:
    given = {"data": data, "out": str(out), "seed": seed, "overwrite": True, **settings, **change}
    return str(pretrain(Request.of(method, **given), quiet=True).folder)


def _row(name: str, change: Mapping[str, Any], values: list[float]) -> dict[str, Any]:
    mean, low, high = interval(values)
    return {"row": name, "change": _plain(change), "values": list(values),
            "mean": mean, "low": low, "high": high}  # fmt: skip


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value), default=str))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def _finished(file: Path, request: dict[str, Any]) -> dict[str, list[float]]:
    """Values of an earlier call with the same settings and the same images, by row."""
    before = read_json(file)
    if not isinstance(before, dict) or not isinstance(before.get("asked"), dict):
        return {}
    asked = json.loads(json.dumps(request, default=str))
    # Older versions wrote no digests.
    if {"digests": asked["digests"], **before["asked"]} != asked:
        return {}
    rows = before.get("rows")
    return {
        json.dumps([row.get("row"), row.get("change")]): row["values"]
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict) and _are_shares(row.get("values"))
    }


def _are_shares(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int | float) and 0 <= v <= 1 for v in values
    )


def _write(file: Path, request: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    write_text(file, json.dumps({"asked": request, "rows": rows}, indent=2, default=str))

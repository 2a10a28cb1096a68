"""The report: verdict, tables, snapshots, pictures, curves and settings, in one offline HTML file.

The page's Content-Security-Policy forbids all requests, and all scripts but `script.js`, which it
names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from nolabel import _usercode, recipes
from nolabel._files import check_file, write_text
from nolabel.config import Run
from nolabel.engine.resolve import diff_from_recipe
from nolabel.errors import UsageError, command
from nolabel.methods import METHODS
from nolabel.pictures._tiles import read_captions
from nolabel.tools.report.curves import curves, is_number
from nolabel.tools.report.packing import packed
from nolabel.tools.report.parts import Parts, read_picture
from nolabel.tools.report.snapshots import similarity_viewer, snapshot_strip
from nolabel.tools.report.trial import trial
from nolabel.tools.report.verdict import chosen, three_numbers, verdict

CHARTS = frozenset(  # pictures of lines and text, by their names
    {"attention-distance", "bias", "tsne", "pca-layers", "invert-curves", "transfer-curves"}
)
BUDGET = 4_500_000  # bytes of pictures; beyond, they are compressed with loss
HERE = Path(__file__).parent


def build_report(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes report.html.

    Args:
        folder: a run's folder.
        out: the file; default report.html in the folder.
        rows: a comparison, objects with encoder, setting, metric, value, low, high; default
            comparison.json in the folder, when it is there.
        notes: pictures that could not be drawn, and why.

    Raises:
        UsageError: the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} holds no run (no config.yaml). Give the folder of a run.")
    check_file(out or folder / "report.html")
    parts = Parts(folder)
    name, kept = parts.comparison()
    rows, name = kept if rows is None else rows, name or str(folder)
    metrics, config, snapshots = parts.metrics(), parts.text("config.yaml"), parts.snapshots()
    run = parts.run()
    # Read from the text: it counts where the rest of the configuration is damaged, too.
    private = re.search(r"(?m)^ +private: true$", config) is not None
    shown_as = folder
    if private:
        shown_as, snapshots, name = Path(folder.name), None, PurePath(name).name
        rows = [{**row, "encoder": _short(str(row["encoder"]))} for row in rows]
        run = run and run.with_settings(data="private data")
    path = Path(out) if out else folder / "report.html"
    steps, workers = (run.settings.steps, run.settings.workers) if run else (0, None)
    text = verdict(rows, metrics, steps, run=name, workers=workers)
    touched = similarity_viewer(snapshots)
    title = _title(run) or folder.name
    settings = "Left out, as the run is private: see config.yaml." if private else config
    skipped, machine = parts.text("skipped.jsonl"), parts.text("environment.json")
    missing = dict.fromkeys((*notes, *parts.notes))
    sections = {
        "Measured": _table(rows),
        "Choice of the method": trial(parts.tournament()),
        "Features during training": snapshot_strip(snapshots),
        "Similarity of patches": touched,
        "Pictures": _pictures(folder / "pictures", parts.encoder())
        + "".join(f'<p class="soft">Not drawn: {_e(n)}</p>' for n in missing),
        "Training curves": _training(run, metrics, len(skipped.splitlines())),
        "Settings": _settings(run),
        "Repeat this run": f"<p><code>{_e(again(config, shown_as))}</code></p>"
        f"<details><summary>All settings</summary><pre>{_e(settings)}</pre></details>"
        "<details><summary>Machine and versions</summary>"
        f"<pre>{_e(machine)}</pre></details>",
    }
    shown = {heading: part for heading, part in sections.items() if part}
    body = [
        f"<h1>{_e(title)}</h1>",
        _about(run, shown_as),
        f'<p class="verdict {_mood(text)}">{_e(text)}</p>',
        f'<p class="soft">Damaged: {_e("; ".join(parts.damaged))}.</p>' if parts.damaged else "",
        _numbers(three_numbers(rows, metrics, name)),
        "<nav>" + " ".join(f'<a href="#{_slug(h)}">{_e(h)}</a>' for h in shown) + "</nav>",
        *(f'<h2 id="{_slug(h)}">{_e(h)}</h2>{part}' for h, part in shown.items()),
    ]
    page = _html(title, [part for part in body if part], script=bool(touched))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _html(title: str, body: Sequence[str], *, script: bool) -> str:
    """The page of its parts, with `script.js` if it is needed."""
    code = (HERE / "script.js").read_text("utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; " if code else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"{allowed}img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>nolabel: {_e(title)}</title>"
        f"<style>{(HERE / 'style.css').read_text('utf-8')}</style></head><body>"
        + "\n".join(body)
        + (f"<script>{code}</script>" if code else "")
        + "</body></html>\n"
    )


def _mood(text: str) -> str:
    """CSS class of a verdict: good, bad, or empty."""
    word = text.partition(".")[0]
    bad = ("Collapsed", "Diverging", "Not yet")
    return {"Learned": "good", "Learning": "good"}.get(word, "bad" if word.startswith(bad) else "")


def _numbers(numbers: Sequence[tuple[str, str]]) -> str:
    """A few large numbers, each with what it is."""
    cells = "".join(
        f"<div><b>{_e(value)}</b><span>{_e(what)}</span></div>" for value, what in numbers
    )
    return f'<div class="numbers">{cells}</div>' if cells else ""


def _training(run: Run | None, metrics: Sequence[Mapping[str, Any]], bad: int) -> str:
    """Curves, speed, and the number of files that could not be read."""
    warm = run.optim.warmup_epochs * run.steps_per_epoch if run else 0.0
    info = METHODS.get(run.method) if run else None
    return (
        curves(metrics, warm, info.loss if info else "")
        + _speed(metrics)
        + f"<p>Files that could not be read: {bad}.</p>"
    )


def again(config: str, folder: Path) -> str:
    """The command that repeats a run from its folder, as the folder was named."""
    where = str(folder / "config.yaml")
    return command(
        "nolabel", "pretrain", _method(config, folder), "--config", where, "--out", "NEW_FOLDER"
    )


def _title(run: Run | None) -> str:
    """Method and data; empty without a run."""
    if run is None:
        return ""
    return f"{_without_hash(run.method)} on {_short(str(run.settings.data))}"


def _short(name: str) -> str:
    """The last part of a path."""
    return PurePath(_without_hash(name)).name or name


def _without_hash(name: str) -> str:
    return _usercode.without_hash(name)


def _slug(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _about(run: Run | None, folder: Path) -> str:
    """What was trained, on which data, for how long."""
    if run is None:
        return f'<p class="soft">{_e(str(folder))}</p>'
    s = run.settings
    return (
        f'<p class="soft">{_e(str(folder))}: {_e(run.method)} with {_e(s.backbone)} of '
        f"{s.image_size} px on {run.images:,} images of {_e(str(s.data))}: {s.steps:,} steps of "
        f"{s.batch_size:,} "
        f"images, seed {s.seed}. The features may be worse for other images.</p>"
    )


def _speed(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Throughput and data wait in words."""
    rates = [m["images_per_second"] for m in metrics if is_number(m.get("images_per_second"))]
    waits = [m["data_wait"] for m in metrics if is_number(m.get("data_wait"))]
    seconds = [m["seconds"] for m in metrics if is_number(m.get("seconds"))]
    if not rates or not seconds or not waits:
        return ""
    return (
        f"<p>{seconds[-1]:,.0f} s since it was started or last resumed; "
        f"{sum(rates) / len(rates):,.0f} images/s on average, {rates[-1]:,.0f} at the end; "
        f"{sum(waits) / len(waits):.0%} of the time was spent waiting for data.</p>"
    )


def _settings(run: Run | None) -> str:
    """The settings that differ from the recipe."""
    if run is None:
        return ""
    differences = diff_from_recipe(run)
    name = run.settings.recipe if recipes.is_name(run.settings.recipe) else "auto"
    if not differences:
        return f"<p>All options have the values of the recipe {name!r}.</p>"
    cells = "".join(
        f"<tr><td>{_e(key)}</td><td>{_e(str(value))}</td><td>{_e(str(other))}</td></tr>"
        for key, value, other in differences
    )
    return (
        f"<p>They differ from the recipe {name!r} in:</p><table><tr>"
        f"<th>setting</th><th>here</th><th>recipe</th></tr>{cells}</table>"
    )


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _method(config: str, folder: Path) -> str:
    """The method's name on a command line."""
    for line in config.splitlines():
        if line.startswith("method:"):
            name = line.partition(":")[2].strip()
            code = _usercode.parse(name)
            return f"{folder / code.copy}:{code.attribute}" if code and code.digest else name
    return "METHOD"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The row that represents each encoder, and the others folded away."""
    if not rows:
        return ""
    best = chosen(rows)
    more = "" if len(best) == len(rows) else (
        f"<details><summary>Every setting</summary>{_rows(rows)}</details>"
    )  # fmt: skip
    return _rows(best) + more


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = "".join(
        f"<tr><td>{_e(str(r['encoder']))}</td><td>{_e(str(r.get('protocol', '')))}</td>"
        f"<td>{_e(str(r.get('setting', '')))}</td><td>{_e(str(r.get('metric', '')))}</td>"
        f'<td class="n">{r["value"]:.1%}</td><td class="n">{_span(r)}</td>'
        f'<td class="n">{_chance(r)}</td></tr>'
        for r in rows
    )
    heads = ("encoder", "protocol", "setting", "metric", "value", "95 %", "chance")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{cells}</table>"


def _chance(row: Mapping[str, Any]) -> str:
    return f"{row['chance']:.1%}" if is_number(row.get("chance")) else ""


def _span(row: Mapping[str, Any]) -> str:
    if row.get("low") is None:
        return ""
    return f"{row['low']:.1%} to {row['high']:.1%}"


def _pictures(folder: Path, encoder: str) -> str:
    """The pictures of a folder; those that were drawn of another encoder say so."""
    captions = read_captions(folder)
    paths = sorted(folder.glob("*.png"))
    read = {path: image for path in paths if (image := read_picture(path)) is not None}
    damaged = [path.name for path in paths if path not in read]
    paths, images = list(read), list(read.values())
    kinds = [path.stem in CHARTS for path in paths]
    uris = [packed(i, chart=c) for i, c in zip(images, kinds, strict=True)]
    if sum(len(uri) for uri in uris) > BUDGET:
        uris = [packed(i, 60, chart=c) for i, c in zip(images, kinds, strict=True)]
    out = []
    for path, uri in zip(paths, uris, strict=True):
        about = captions.get(path.stem, {})
        caption = str(about.get("caption", path.stem))
        if about.get("encoder", encoder) != encoder:
            caption = f"Drawn of another or an earlier encoder. {caption}"
        out.append(
            f'<figure><img alt="{_e(path.stem)}: {_e(caption)}" src="{uri}">'
            f"<figcaption>{_e(caption)}</figcaption></figure>"
        )
    if damaged:
        out.append(f"<p>Damaged, not shown: {_e(', '.join(damaged))}.</p>")
    return "".join(out)

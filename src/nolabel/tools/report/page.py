"""The report: verdict, tables, snapshots, pictures, curves and settings, in one offline HTML file.

The page's Content-Security-Policy forbids all requests, and all scripts but `script.js`, which it
names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from nolabel import _usercode
from nolabel.config import Run
from nolabel.engine.monitor.doctor import examine
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.resolve import diff_from_recipe
from nolabel.engine.saved_run import load_run
from nolabel.errors import NolabelError, UntrustedCode, UsageError
from nolabel.tools.report.curves import curves, is_number
from nolabel.tools.report.seen import strip, touch

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
    if rows is None:
        rows = _json(folder / "comparison.json").get("rows", [])
    metrics = read_metrics(folder / "metrics.jsonl")
    config = (folder / "config.yaml").read_text("utf-8")
    run, unread = _run(folder)
    missing = dict.fromkeys((*notes, *unread))
    path = Path(out) if out else folder / "report.html"
    skipped = folder / "skipped.jsonl"
    bad = len(skipped.read_text("utf-8").splitlines()) if skipped.exists() else 0
    text = verdict(rows, metrics, run.settings.steps if run else 0)
    warm = run.optim.warmup_epochs * run.steps_per_epoch if run else 0.0
    touched = touch(folder)
    body = [
        f"<h1>{_e(folder.name)}</h1>",
        f'<p class="verdict {_mood(text)}">{_e(text)}</p>',
        _about(run),
        _table(rows),
        strip(folder),
        touched,
        _pictures(folder / "pictures"),
        "".join(f'<p class="soft">Not drawn: {_e(n)}</p>' for n in missing),
        "<h2>Training curves</h2>",
        curves(metrics, warm),
        _speed(metrics),
        f"<p>Files that could not be read: {bad}.</p>",
        _settings(run),
        "<h2>Repeat this run</h2><p><code>nolabel pretrain "
        f"{_e(_method(config, folder.name))} --config "
        f"{_e(str(folder.name))}/config.yaml --out NEW_FOLDER</code></p>",
        f"<details><summary>All settings</summary><pre>{_e(config)}</pre></details>",
        "<details><summary>Machine and versions</summary>"
        f"<pre>{_e(_text(folder / 'environment.json'))}</pre></details>",
    ]
    script = (HERE / "script.js").read_text("utf-8") if touched else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; " if script else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"{allowed}img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>nolabel: {_e(folder.name)}</title>"
        f"<style>{(HERE / 'style.css').read_text('utf-8')}</style></head><body>"
        + "\n".join(part for part in body if part)
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def verdict(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], total: int = 0
) -> str:
    """The verdict in words: learned, inconclusive or not measured, and the doctor's verdict unless
    it is "learning".

    Args:
        rows: a comparison.
        metrics: lines of metrics.jsonl.
        total: steps of the run; 0: those of the last line.
    """
    if not metrics:
        return "Not measured: no metrics yet."
    health = examine(metrics, total or int(metrics[-1]["step"]))
    if health.state in ("collapsed", "diverging"):
        return str(health)
    text = _learned(rows, metrics[-1])
    return text if health.state in ("learning", "early") else f"{text} {health}"


def _learned(rows: Sequence[Mapping[str, Any]], last: Mapping[str, Any]) -> str:
    spread, rank = last.get("feature_std"), last.get("effective_rank")
    score = {str(r["encoder"]): r for r in rows if r.get("metric", "top1") == "top1"}
    others = {k: r for k, r in score.items() if k == "pixels" or k.startswith("random:")}
    trained = [r for k, r in score.items() if k not in others]
    if others and trained:
        best = max(trained, key=lambda r: r["value"])
        rival = max(others, key=lambda k: others[k]["value"])
        gap = (best["value"] - others[rival]["value"]) * 100
        text = (
            f"k-NN finds the right kind for {best['value']:.1%} of unseen images, against "
            f"{others[rival]['value']:.1%} with {rival}: {gap:+.1f} points."
        )
        clear = best.get("low", best["value"]) > others[rival].get("high", others[rival]["value"])
        return ("Learned. " if clear else "Inconclusive. ") + text
    probed = last.get("probe_knn")
    if is_number(probed):
        return (
            f"Not compared: k-NN on the probe's labelled data reached {probed:.1%}. "
            "`nolabel compare` compares it with pixels and random initialisation."
        )
    if isinstance(spread, float) and isinstance(rank, float):
        return (
            f"Not measured against labels. The spread of the features is {spread:.2f} (1 = uniform "
            f"directions, 0 = collapsed), their effective rank {rank:.0f}; give --probe or run "
            "`nolabel compare`."
        )
    return "Not measured against labels; give --probe or run `nolabel compare`."


def _run(folder: Path) -> tuple[Run | None, tuple[str, ...]]:
    """The saved run and notes; None if config.yaml cannot be read or needs untrusted code."""
    try:
        return load_run(folder), ()
    except UntrustedCode as error:
        return None, (str(error),)
    except (NolabelError, TypeError, ValueError):
        return None, ()


def _mood(text: str) -> str:
    """CSS class of a verdict: good, bad, or empty."""
    word = text.partition(".")[0]
    return {"Learned": "good", "Learning": "good"}.get(
        word, "bad" if word.startswith(("Collapsed", "Diverging")) else ""
    )


def _about(run: Run | None) -> str:
    """What was trained, on which data, for how long."""
    if run is None:
        return ""
    s = run.settings
    return (
        f'<p class="soft">{_e(run.method)} with {_e(s.backbone)} of {s.image_size} px on '
        f"{run.images:,} images of {_e(str(s.data))}: {s.steps:,} steps of "
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
    name = run.settings.recipe if run.settings.recipe == "paper" else "auto"
    if not differences:
        return f"<h2>Settings</h2><p>All options have the values of the recipe {name!r}.</p>"
    cells = "".join(
        f"<tr><td>{_e(key)}</td><td>{_e(str(value))}</td><td>{_e(str(other))}</td></tr>"
        for key, value, other in differences
    )
    return (
        f"<h2>Settings</h2><p>They differ from the recipe {name!r} in:</p><table><tr>"
        f"<th>setting</th><th>here</th><th>recipe</th></tr>{cells}</table>"
    )


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _method(config: str, folder: str) -> str:
    """The method's name on a command line."""
    for line in config.splitlines():
        if line.startswith("method:"):
            name = line.partition(":")[2].strip()
            code = _usercode.parse(name)
            return f"{folder}/{code.copy}:{code.attribute}" if code and code.digest else name
    return "METHOD"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td>{_e(str(r['encoder']))}</td><td>{_e(str(r.get('setting', '')))}</td>"
        f"<td>{_e(str(r.get('metric', '')))}</td>"
        f'<td class="n">{r["value"]:.1%}</td>'
        f'<td class="n">{_span(r)}</td></tr>'
        for r in rows
    )
    head = "<tr><th>encoder</th><th>setting</th><th>metric</th><th>value</th><th>95 %</th></tr>"
    return f"<h2>Measured</h2><table>{head}{cells}</table>"


def _span(row: Mapping[str, Any]) -> str:
    if row.get("low") is None:
        return ""
    return f"{row['low']:.1%} to {row['high']:.1%}"


def _pictures(folder: Path) -> str:
    captions = _json(folder / "numbers.json")
    paths = sorted(folder.glob("*.png"))
    packed = [_packed(path, 100) for path in paths]
    if sum(len(data) for data in packed) > BUDGET:
        packed = [_packed(path, 60) for path in paths]
    out = []
    for path, data in zip(paths, packed, strict=True):
        caption = str((captions.get(path.stem) or {}).get("caption", path.stem))
        out.append(
            f'<figure><img alt="{_e(path.stem)}: {_e(caption)}" '
            f'src="data:image/webp;base64,{data}">'
            f"<figcaption>{_e(caption)}</figcaption></figure>"
        )
    return "<h2>Pictures</h2>" + "".join(out) if out else ""


def _packed(path: Path, quality: int) -> str:
    """A picture as WebP in base64: lossless at quality 100, else at most 1200 px wide."""
    with Image.open(path) as picture:
        image = picture.convert("RGB")
    if quality < 100 and image.width > 1200:
        image = image.resize((1200, max(image.height * 1200 // image.width, 1)))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=quality == 100, quality=quality, method=4)
    return base64.b64encode(buffer.getvalue()).decode()

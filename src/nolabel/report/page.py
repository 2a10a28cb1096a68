"""The report: verdict, tables, curves, pictures, settings.  No script, no request, no account."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nolabel.engine.doctor import examine
from nolabel.engine.log import read_metrics
from nolabel.errors import UsageError

CURVES = (
    ("loss", "Loss"),
    ("probe_knn", "k-NN on labelled data (top-1)"),
    ("feature_std", "Spread of features (1 = everywhere, 0 = collapsed)"),
    ("effective_rank", "Effective rank of features (RankMe)"),
    ("target_entropy", "Entropy of the targets (nats)"),
    ("target_information", "What targets tell of the image (nats, 0 = collapsed)"),
    ("update_size", "Update of the weights, relative to their size"),
    ("momentum_distance", "Distance of the teacher from its student, relative"),
    ("gradient_norm", "Norm of the gradient"),
    ("agreement", "Agreement of two views of a picture (cosine)"),
    ("agreement_others", "Agreement of different pictures (cosine, near agreement = collapsed)"),
    ("lr", "Learning rate"),
    ("images_per_second", "Images a second"),
)
STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#666;--back:#fff;--line:#ddd;--mark:#2563a8}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--soft:#a0a0a0;--back:#16181c;
--line:#383c44;--mark:#7db3ea}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:60rem;
margin:2rem auto;padding:0 1rem}
.verdict{border-left:.4rem solid var(--mark);padding:.5rem 1rem;font-size:1.15rem}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;
border-bottom:1px solid var(--line)}td.n{text-align:right;font-variant-numeric:tabular-nums}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem}
figure{margin:1.5rem 0}figcaption,small{color:var(--soft)}img{max-width:100%;
image-rendering:pixelated}pre{overflow:auto;font-size:.8rem}svg{width:100%;height:auto}
"""


def build_report(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Writes report.html.

    Args:
        folder: a run's folder.
        out: the file; default report.html in the folder.
        rows: a comparison, objects with encoder, setting, metric, value, low, high; default
            comparison.json in the folder, when it is there.

    Raises:
        UsageError: the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} holds no run (no config.yaml). Give the folder of a run.")
    if rows is None:
        raw = _json(folder / "comparison.json") or {}
        rows = raw.get("rows", []) if isinstance(raw, dict) else []
    metrics = read_metrics(folder / "metrics.jsonl")
    config = (folder / "config.yaml").read_text("utf-8")
    path = Path(out) if out else folder / "report.html"
    skipped = folder / "skipped.jsonl"
    bad = len(skipped.read_text("utf-8").splitlines()) if skipped.exists() else 0
    body = [
        f"<h1>{_e(folder.name)}</h1>",
        f'<p class="verdict">{_e(verdict(rows, metrics, _steps(config)))}</p>',
        _table(rows),
        _pictures(folder / "pictures"),
        "<h2>While it trained</h2>",
        '<div class="curves">' + "".join(_curve(metrics, k, t) for k, t in CURVES) + "</div>",
        f"<p>Files that could not be read: {bad}.</p>",
        f"<h2>Settings</h2><p>Again: <code>nolabel pretrain {_e(_method(config))} --config "
        f"{_e(str(folder.name))}/config.yaml --out NEW_FOLDER</code></p><pre>{_e(config)}</pre>",
        f"<h2>Machine</h2><pre>{_e(_text(folder / 'environment.json'))}</pre>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>nolabel: {_e(folder.name)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def verdict(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], total: int = 0
) -> str:
    """What the numbers say in plain words: learned, inconclusive, not measured; and the doctor's
    verdict where it is another than learning.

    Args:
        rows: a comparison.
        metrics: lines of metrics.jsonl.
        total: steps of the run; 0 is as far as the lines go.
    """
    if not metrics:
        return "Not measured: no metrics yet."
    found = examine(metrics, total or int(metrics[-1]["step"]))
    if found.state in ("collapsed", "diverging"):
        return str(found)
    said = _learned(rows, metrics[-1])
    return said if found.state in ("learning", "early") else f"{said} {found}"


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
    if isinstance(spread, float) and isinstance(rank, float):
        return (
            f"Not measured against labels. The features are spread ({spread:.2f}, 1 = everywhere) "
            f"with an effective rank of {rank:.0f}; give --probe or run `nolabel compare`."
        )
    return "Not measured against labels; give --probe or run `nolabel compare`."


def _steps(config: str) -> int:
    """The steps of a run from its configuration; 0 where they cannot be read."""
    try:
        return int(yaml.safe_load(config)["settings"]["steps"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return 0


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _method(config: str) -> str:
    for line in config.splitlines():
        if line.startswith("method:"):
            return line.partition(":")[2].strip()
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
    captions = _json(folder / "numbers.json") or {}
    out = []
    for path in sorted(folder.glob("*.png")):
        caption = str((captions.get(path.stem) or {}).get("caption", path.stem))
        data = base64.b64encode(path.read_bytes()).decode()
        out.append(
            f'<figure><img alt="{_e(path.stem)}: {_e(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{_e(caption)}</figcaption></figure>"
        )
    return "<h2>What it sees</h2>" + "".join(out) if out else ""


def _curve(metrics: Sequence[Mapping[str, Any]], key: str, title: str) -> str:
    """A small inline SVG of one number over steps; nothing when there is nothing to draw."""
    points = [
        (float(m["step"]), float(m[key]))
        for m in metrics
        if isinstance(m.get(key), (int, float)) and math.isfinite(m[key]) and "step" in m
    ]
    if len(points) < 2:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high, left, right = min(ys), max(ys), min(xs), max(xs)
    spread, width = (high - low) or 1.0, (right - left) or 1.0
    path = " ".join(
        f"{10 + 280 * (x - left) / width:.1f},{90 - 80 * (y - low) / spread:.1f}" for x, y in points
    )
    return (
        f'<div><svg viewBox="0 0 300 100" role="img" aria-label="{_e(title)}">'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<small>{_e(title)}: {ys[0]:.4g} to {ys[-1]:.4g} "
        f"(lowest {low:.4g}, highest {high:.4g})</small></div>"
    )

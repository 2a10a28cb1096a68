"""Curves of a run as inline SVG, with its warm-up shaded and its resumptions marked."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

CURVES = (
    ("loss", "Loss"),
    ("loss_spikes", "Loss spikes so far"),
    ("probe_knn", "k-NN on labelled data (top-1)"),
    ("feature_std", "Spread of features (1 = uniform directions, 0 = collapsed)"),
    ("effective_rank", "Effective rank of features (RankMe)"),
    ("target_entropy", "Entropy of the targets (nats)"),
    ("target_information", "Information of the targets about the image (nats, 0 = collapsed)"),
    ("update_size", "Update of the weights, relative to their size"),
    ("momentum_distance", "Distance of the teacher from its student, relative"),
    ("gradient_norm", "Norm of the gradient"),
    ("agreement", "Agreement of two views of an image (cosine)"),
    (
        "agreement_others",
        "Agreement of different images (cosine, near that of two views = collapsed)",
    ),
    ("lr", "Learning rate"),
    ("images_per_second", "Images per second"),
    ("data_wait", "Share of time spent waiting for data"),
)
LEFT, RIGHT, TOP, BOTTOM = 38, 296, 6, 92  # of the frame, in a picture of 300 x 106


def curves(metrics: Sequence[Mapping[str, Any]], warmup_steps: float = 0.0, loss: str = "") -> str:
    """Every curve that has two points or more, as HTML.

    Args:
        metrics: lines of metrics.jsonl.
        warmup_steps: steps in which the learning rate rises.
        loss: why the loss may rise; empty if it may not.
    """
    resumed = sorted({int(m["resumed_at"]) for m in metrics if "resumed_at" in m})
    drawn = "".join(_curve(metrics, key, title, warmup_steps, resumed) for key, title in CURVES)
    if not drawn:
        return '<p class="soft">Too few lines in metrics.jsonl for curves.</p>'
    notes = []
    if warmup_steps >= 1:
        notes.append(f"shaded: the warm-up, {warmup_steps:,.0f} steps")
    if loss:
        notes.append(f"the loss: {html.escape(loss)}")
    if resumed:
        notes.append("dashed: resumed at step " + ", ".join(f"{s:,}" for s in resumed))
    note = f'<p class="soft">{"; ".join(notes)}.</p>' if notes else ""
    return f'<div class="curves">{drawn}</div>{note}'


def is_number(value: object) -> TypeGuard[float]:
    """Whether there is something to draw or to print."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _curve(
    metrics: Sequence[Mapping[str, Any]], key: str, title: str, warm: float, resumed: list[int]
) -> str:
    points = [
        (float(m["step"]), float(m[key])) for m in metrics if is_number(m.get(key)) and "step" in m
    ]
    if len(points) < 2:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high, left, right = min(ys), max(ys), min(xs), max(xs)
    spread, width = (high - low) or 1.0, (right - left) or 1.0

    def across(x: float) -> float:
        return LEFT + (RIGHT - LEFT) * (min(max(x, left), right) - left) / width

    path = " ".join(
        f"{across(x):.1f},{BOTTOM - (BOTTOM - TOP) * (y - low) / spread:.1f}" for x, y in points
    )
    marks = ""
    if warm > left:
        marks += (
            f'<rect class="warm" x="{LEFT}" y="{TOP}" width="{across(warm) - LEFT:.1f}" '
            f'height="{BOTTOM - TOP}"/>'
        )
    for step in resumed:
        x = f"{across(step):.1f}"
        marks += f'<line class="resumed" x1="{x}" x2="{x}" y1="{TOP}" y2="{BOTTOM}"/>'
    texts = (
        f'<text x="{LEFT - 3}" y="{TOP + 7}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 3}" y="{BOTTOM}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{BOTTOM + 11}">{left:,.0f}</text>'
        f'<text x="{RIGHT}" y="{BOTTOM + 11}" text-anchor="end">{right:,.0f}</text>'
    )
    name = html.escape(title, quote=True)
    return (
        f'<div><svg viewBox="0 0 300 106" role="img" aria-label="{name}">{marks}'
        f'<path class="frame" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>{texts}'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f'<small data-key="{key}" data-first="{ys[0]!r}" data-last="{ys[-1]!r}" '
        f'data-low="{low!r}" data-high="{high!r}">{name}: {ys[0]:.4g} to {ys[-1]:.4g} '
        f"(lowest {low:.4g}, highest {high:.4g})</small></div>"
    )

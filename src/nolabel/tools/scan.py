"""`nolabel scan`: checks a data set, suggests settings, and predicts their cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nolabel.config import Request
from nolabel.data.progress import phase
from nolabel.data.source import Source, Subset
from nolabel.data.sources.items import Items
from nolabel.device import pick_device
from nolabel.engine import calibrate, cost
from nolabel.engine.build import build
from nolabel.engine.checkpoint import KEEP_NEWEST
from nolabel.engine.resolve import resolve
from nolabel.errors import BadImage, command
from nolabel.nn.parameters import count_parameters
from nolabel.pictures._tiles import sheet
from nolabel.tools.survey import Survey, survey

_SHOWN = 5  # bad files and groups of duplicates that are printed


def scan(
    source: Source,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    limit: int | None = None,
    predict: bool = True,
) -> dict[str, Any]:
    """Reads every image and reports what was found.

    Args:
        source: the images.
        out: folder for contact-sheet.png, scan.json, skipped.jsonl and duplicates.json.
        method: the method to suggest settings for; None lets the machine decide.
        limit: reads that many images only, chosen at random.
        predict: whether to measure a step and predict memory, time and disk.

    Returns:
        What scan.json holds: fractions of one, seconds, bytes.
    """
    found = survey(source, limit=limit)
    result = to_dict(found)
    if found.good == 1:
        result["notes"].append("one image can be read; a method needs two or more to learn from")
    elif found.good and predict:
        with phase("measuring a training step, to suggest a recipe"):
            result["recipe"] = suggest(source, method)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        if len(found.thumbs):
            rows = [list(found.thumbs[i : i + 8]) for i in range(0, len(found.thumbs), 8)]
            Image.fromarray(sheet(rows, side=found.thumbs.shape[1])).save(
                folder / "contact-sheet.png"
            )
        lines = [json.dumps({"path": p, "reason": r}) + "\n" for p, r in found.bad]
        (folder / "skipped.jsonl").write_text("".join(lines), encoding="utf-8")
        groups = {"exact": found.same, "near": found.near}
        (folder / "duplicates.json").write_text(json.dumps(groups, indent=1), encoding="utf-8")
        text = json.dumps(result, indent=2) + "\n"
        (folder / "scan.json").write_text(text, encoding="utf-8")
    return result


def to_dict(found: Survey) -> dict[str, Any]:
    """The survey as built-in types, as in scan.json."""
    out: dict[str, Any] = {
        "data": found.name,
        "images": found.images,
        "seen": found.seen,
        "unreadable": len(found.bad),
        "unreadable_first": [list(b) for b in found.bad[:_SHOWN]],
        "exact_duplicates": sum(len(g) - 1 for g in found.same),
        "near_duplicates": sum(len(g) - 1 for g in found.near),
        "duplicates_first": [list(g[:4]) for g in (*found.same, *found.near)[:_SHOWN]],
        "classes": found.labels,
        "notes": list(found.notes),
    }
    if not found.good:
        return out
    height, width = found.sizes[:, 0], found.sizes[:, 1]

    def spread(values: np.ndarray) -> dict[str, float]:
        low, middle, high = np.percentile(values, [0, 50, 100])
        return {"least": float(low), "median": float(middle), "most": float(high)}

    return {
        **out,
        "modes": found.modes,
        "width": spread(width),
        "height": spread(height),
        "aspect": spread(width / height),
        "mean": list(found.mean),
        "std": list(found.std),
    }


def suggest(source: Source, method: str | None = None) -> dict[str, Any]:
    """A method and its automatic settings for these data on this machine, and what they cost."""
    gpu = torch.cuda.is_available()
    chosen = method or ("dino" if gpu else "simclr")
    good, channels = _readable(source), source.channels
    request = Request.of(chosen, data=source.name, out="unused", channels=channels)
    resolved = resolve(request, source=good)
    device, run = pick_device(resolved.run.settings.device, fallback=True), resolved.run
    built = build(resolved)
    network, plan = built.method.to(device), built.plan
    measured = calibrate.measure(
        run, network, plan, good, device, precisions=("fp32", "bf16"), may_split=True
    )
    s, steps = run.settings, run.settings.steps
    images, optim = s.batch_size // measured.accumulate, run.optim
    trainable, untrained = cost.state_elements(network)
    fixed = cost.state_memory(trainable, untrained, optim, frozen=cost.frozen_parameters(network))
    saved = cost.checkpoint_bytes(trainable, untrained, optim)
    return {
        "method": chosen,
        "why": "is the choice for a GPU" if gpu else "learns within minutes on a CPU",
        "backbone": s.backbone,
        "image_size": s.image_size,
        "patch_size": s.patch_size,
        "views": plan.describe(),
        "batch_size": s.batch_size,
        "lr": optim.lr,
        "epochs": s.epochs,
        "steps": steps,
        "seconds_per_step": measured.step + measured.data,
        "seconds": steps * (measured.step + measured.data),
        "memory_bytes": sum(fixed.values())
        + cost.extrapolated_activations(network, measured.batch, images),
        "disk_bytes": (KEEP_NEWEST + 1) * saved + 4 * count_parameters(network.encoder),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "command": command(
            "nolabel",
            "pretrain",
            chosen,
            "--data",
            source.name,
            *(("--channels", str(channels)) if channels != 3 else ()),
        ),
    }


def _readable(source: Source) -> Source:
    """The source without the images at its start that cannot be read."""
    for i in range(len(source)):
        try:
            source.read(i)
        except BadImage:
            continue
        return source if i == 0 else Subset(source, np.arange(i, len(source)))
    return Items([])


def describe(result: dict[str, Any]) -> str:
    """The outcome of `scan` as lines to read."""
    r = result
    part = "" if r["seen"] == r["images"] else f", {r['seen']:,} of them read"
    lines = [f"data        {r['data']}: {r['images']:,} images{part}"]
    if "width" in r:
        w, h, a = r["width"], r["height"], r["aspect"]
        modes = ", ".join(f"{n:,} {mode}" for mode, n in r["modes"].items())
        lines += [
            f"size        {w['median']:.0f} x {h['median']:.0f} px (median), "
            f"{w['least']:.0f} x {h['least']:.0f} to {w['most']:.0f} x {h['most']:.0f}, "
            f"width / height {a['least']:.2f} to {a['most']:.2f}",
            f"colour      {modes}; mean {_three(r['mean'])}, deviation {_three(r['std'])}",
        ]
    if r["classes"]:
        counts = list(r["classes"].values())
        lines.append(f"classes     {len(counts)}, of {min(counts):,} to {max(counts):,} images")
    lines += [f"note        {note}" for note in r["notes"]]
    lines.append(f"unreadable  {r['unreadable']:,}")
    lines += [f"            {path}: {reason}" for path, reason in r["unreadable_first"]]
    lines.append(
        f"duplicates  {r['exact_duplicates']:,} equal, {r['near_duplicates']:,} nearly equal"
    )
    lines += [f"            {' = '.join(group)}" for group in r["duplicates_first"]]
    if "recipe" in r:
        c = r["recipe"]
        patch = f", patch {c['patch_size']} px" if c["patch_size"] else ""
        lines += [
            f"suggested   {c['command']}",
            f"            {c['method']} {c['why']}; {c['backbone']} at {c['image_size']} px{patch}",
            *(f"            view {line}" for line in c["views"]),
            f"            batch {c['batch_size']}, learning rate {c['lr']:g}, {c['epochs']} epochs",
            f"predicted   {_span(c['seconds'])} for {c['steps']:,} steps of "
            f"{c['seconds_per_step'] * 1e3:.0f} ms (--minutes M for a shorter run), "
            f"{c['memory_bytes'] / 1e6:,.0f} MB of memory and the program's own, "
            f"{c['disk_bytes'] / 1e6:,.0f} MB of disk ({c['disk_free_bytes'] / 1e9:,.0f} GB free)",
        ]
    return "\n".join(lines)


def _three(values: list[float]) -> str:
    return " ".join(f"{v:.3f}" for v in values)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} hours"

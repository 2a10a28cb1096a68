"""`nolabel scan`: checks a data set, suggests settings, and predicts their cost."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nolabel import methods
from nolabel._files import atomic, check_folder, write_text
from nolabel.config import Request
from nolabel.data.decoded import kept_bytes
from nolabel.data.facts import Facts, facts_of
from nolabel.data.progress import phase
from nolabel.data.source import Source, Subset
from nolabel.data.sources.items import Items
from nolabel.engine import cost
from nolabel.engine.build import Built, build
from nolabel.engine.checkpoint import KEEP_NEWEST
from nolabel.engine.fit import Trial, automatic_method, fit
from nolabel.engine.machine import usable_memory
from nolabel.engine.resolve import Resolved, resolve
from nolabel.errors import BadImage, command
from nolabel.nn.parameters import count_parameters
from nolabel.pictures._tiles import sheet
from nolabel.tools.survey import Survey, survey

OFFERS = (10.0, 60.0, 480.0)  # minutes of the suggested runs
READ_SECONDS = 6.0  # of reading images, unless all are asked for
_SHOWN = 5  # bad files and groups of duplicates that are printed


def scan(
    source: Source,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    limit: int | None = None,
    everything: bool = False,
    predict: bool = True,
) -> dict[str, Any]:
    """Reads images, all if that takes seconds, and reports what was found.

    Args:
        source: the images.
        out: folder for contact-sheet.png, scan.json, skipped.jsonl and duplicates.json.
        method: the method to suggest settings for; None lets the machine decide.
        limit: reads that many images only, chosen at random.
        everything: reads every image, however long it takes; else at most some seconds.
        predict: whether to measure a step and predict memory, time and disk.

    Returns:
        What scan.json holds: fractions of one, seconds, bytes.
    """
    if out is not None:
        check_folder(out)
    found = survey(source, limit=limit, seconds=math.inf if limit or everything else READ_SECONDS)
    result = to_dict(found)
    if found.good == 1:
        result["notes"].append("one image can be read; a method needs two or more to learn from")
    elif found.good and predict:
        with phase("measuring training steps, to suggest a recipe"):
            result["recipe"] = suggest(source, method)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        if len(found.thumbs):
            rows = [list(found.thumbs[i : i + 8]) for i in range(0, len(found.thumbs), 8)]
            with atomic(folder / "contact-sheet.png") as file:
                Image.fromarray(sheet(rows, side=found.thumbs.shape[1])).save(file, "PNG")
        lines = [json.dumps({"path": p, "reason": r}) + "\n" for p, r in found.bad]
        write_text(folder / "skipped.jsonl", "".join(lines))
        groups = {"exact": found.same, "near": found.near}
        write_text(folder / "duplicates.json", json.dumps(groups, indent=1))
        text = json.dumps(result, indent=2) + "\n"
        write_text(folder / "scan.json", text)
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
    """A method, and its automatic settings for ten minutes, an hour and a night on this machine."""
    name, why = automatic_method()
    chosen = method or name
    good = _readable(source)
    facts = facts_of(good)
    stopwatch = Trial(facts, good if "text" in methods.load(chosen).inputs else None)
    offers = [_offer(chosen, minutes, source, good, facts, stopwatch) for minutes in OFFERS]
    resolved, values = offers[0]
    built = build(resolved)
    network, run = built.method, resolved.run
    saved = cost.checkpoint_bytes(*cost.state_elements(network), run.optim)
    return {
        "method": chosen,
        "why": "is the one that you named" if method else why,
        "channels": source.channels,
        "views": built.plan.describe(),
        "lr": run.optim.lr,
        **values,
        "memory_bytes": _memory(built, facts),
        "decode_seconds": facts.seconds,
        "disk_bytes": (KEEP_NEWEST + 1) * saved + 4 * count_parameters(network.encoder),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "offers": [values for _, values in offers],
    }


def _offer(
    method: str, minutes: float, source: Source, good: Source, facts: Facts, stopwatch: Trial
) -> tuple[Resolved, dict[str, Any]]:
    """What a run of so many minutes would be."""
    channels = source.channels
    request = Request.of(method, data=source.name, out="unused", channels=channels, minutes=minutes)
    request, _, _, choice = fit(request, good, facts=facts, stopwatch=stopwatch, quiet=True)
    if minutes != OFFERS[0]:  # what suits the images is measured once
        request = request.choose(fit_views=False)
    resolved = resolve(request, source=good, facts=facts, quiet=True)
    s, steps = resolved.run.settings, max(choice.steps if choice else 0, 1)
    options = ("--channels", str(channels)) if channels != 3 else ()
    return resolved, {
        "minutes": minutes,
        "backbone": s.backbone,
        "image_size": s.image_size,
        "patch_size": s.patch_size,
        "batch_size": s.batch_size,
        "steps": steps,
        "epochs": steps / resolved.run.steps_per_epoch,
        "cache": s.cache,
        "seconds_per_step": 60 * minutes / steps,
        "seconds": 60 * minutes,
        "command": command(
            "nolabel", "pretrain", method, "--data", source.name, "--minutes", f"{minutes:g}",
            *options,
        ),
    }  # fmt: skip


def _memory(built: Built, facts: Facts) -> float:
    """Bytes of a run's weights, activations and decoded images, without the program's own."""
    run, s = built.run, built.run.settings
    counts = cost.extrapolated(
        methods.load(run.method), run.options, s.backbone, s.image_size, s.patch_size, "fp32",
        s.batch_size,
    )  # fmt: skip
    kept = 0.0
    if not isinstance(s.cache, str):
        kept = kept_bytes(s.cache, facts.areas, run.images, facts.item_bytes)
    activations = min(counts.activations, usable_memory(torch.cuda.is_available()))
    return cost.method_memory(built.method, run.optim) + activations + kept


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
    part = "" if r["seen"] == r["images"] else f", {r['seen']:,} of them read (--all reads all)"
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
        lines += _suggestion(r["recipe"], r["images"])
    return "\n".join(lines)


def _suggestion(c: dict[str, Any], images: int) -> list[str]:
    """The lines on the suggested runs."""
    lines = []
    for first, o in zip((True, False, False), c["offers"], strict=True):
        patch = f", patch {o['patch_size']} px" if o["patch_size"] else ""
        lines += [
            f"{'suggested' if first else _span(o['seconds']):<11} {o['command']}",
            f"            {o['backbone']} at {o['image_size']} px{patch}: about {o['steps']:,} "
            f"steps of {o['batch_size']}, {o['epochs']:,.1f} epochs",
        ]
        if first:
            lines[-1] = f"            {c['method']} {c['why']}; {lines[-1].strip()}"
    lines.append(
        f"predicted   {c['memory_bytes'] / 1e6:,.0f} MB of memory and the program's own, "
        f"{c['disk_bytes'] / 1e6:,.0f} MB of disk ({c['disk_free_bytes'] / 1e9:,.0f} GB free), for "
        "the first of them"
    )
    decoding = c["decode_seconds"] * images
    if not isinstance(c["cache"], str) and decoding > 1:
        lines.append(
            "cache       decoded images stay in memory (--cache auto): that saves "
            f"{_span(decoding)} of decoding in each epoch after the first"
        )
    return lines


def _three(values: list[float]) -> str:
    return " ".join(f"{v:.3f}" for v in values)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} hours"

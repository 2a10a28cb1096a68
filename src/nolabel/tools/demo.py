"""`nolabel demo`: pre-train on built-in data, compare, draw pictures, write the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nolabel import limits
from nolabel._files import check_folder
from nolabel.config import Request
from nolabel.data.open import open_source
from nolabel.engine.log import say
from nolabel.engine.train import pretrain
from nolabel.protocols.compare import compare, save_in_runs
from nolabel.tools.report import build_report
from nolabel.tools.show import draw_missing, show


def demo(
    out: str | Path = "demo",
    minutes: float = 2.5,
    method: str = "simclr",
    *,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Trains on `creatures` without labels and measures it against pixels and random weights.

    Args:
        out: folder of the run, the pictures and report.html.
        minutes: length of the training; `steps=N` in `settings` replaces it.
        method: dino, mae or simclr.
        settings: any further option of `nolabel pretrain`.

    Returns:
        {"knn": {"pixels", "random", "trained"}, "seconds": ..., "report": ...}, fractions of one.
    """
    began = time.monotonic()
    check_folder(out)
    limits.positive("--minutes", minutes)
    given = {"data": "creatures", "out": str(out), "overwrite": overwrite, **settings}
    if method != "mae":  # in minutes on a CPU a convolutional network learns more than a ViT
        given.setdefault("backbone", "resnet_nano")
    if "steps" not in settings:
        given["minutes"] = minutes
    source = open_source("creatures", image_size=settings.get("image_size"))
    say(f"1/3  {method} on {len(source):,} images of creatures; no label is used")
    run = pretrain(Request.of(method, **given), source=source)
    trained = time.monotonic()

    say("2/3  k-NN on 2,000 unseen creatures: pixels, random initialisation, trained")
    names = ("pixels", f"random:{run.folder}", str(run.folder))
    table = compare(names, "creatures:train", "creatures:test")
    save_in_runs(table, names)
    kinds = ("pixels", "random", "trained")
    knn = {k: float(r.best["value"]) for k, r in zip(kinds, table.reports, strict=True)}
    print(table)

    say("3/3  pictures and report")
    show("views", run.folder, "creatures:test").save(run.folder / "pictures")
    report = build_report(run.folder, notes=draw_missing(run.folder, "creatures:test"))
    gap = 100 * (knn["trained"] - max(knn["pixels"], knn["random"]))
    print(
        f"pixels {knn['pixels']:.1%}   random initialisation {knn['random']:.1%}   "
        f"trained {knn['trained']:.1%}   ({gap:+.1f} points)\nreport: {report}"
    )
    seconds = {"training": trained - began, "all": time.monotonic() - began}
    return {"knn": knn, "method": method, "seconds": seconds, "report": str(report)}

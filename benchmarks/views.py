"""Images per second and core of the view executors, compared with a torchvision pipeline.

    python benchmarks/views.py [--json FILE] [--seconds S] [--deviations]

Rates count source images; each gives all views of its plan. Images are decoded beforehand. The
candidates alternate, so that other load slows all of them alike; the median is reported.
`--deviations` also measures the differences of the fast executor from the reference, for each
operation, in levels of 255, on the two photographs that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
import torch
import torchvision
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from nolabel.views import FastViews, ReferenceViews, View, ViewPlan

COLOUR: dict[str, Any] = {"jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2}


def simclr(size: int) -> ViewPlan:
    view = View(
        name="global", count=2, size=size, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=(0.5,)
    )
    return ViewPlan(views=(view,))


def dino(size: int, local: int, locals_: int) -> ViewPlan:
    return ViewPlan(
        views=(
            View(
                name="global",
                count=2,
                size=size,
                scale=(0.4, 1.0),
                blur=(1.0, 0.1),
                solarise=(0.0, 0.2),
                **COLOUR,
            ),
            View(name="local", count=locals_, size=local, scale=(0.05, 0.4), blur=(0.5,), **COLOUR),
        )
    )


class PilBlur:
    """The blur of the official implementations: PIL's, which approximates it by box filters."""

    def __init__(self, sigma: tuple[float, float]):
        self.sigma = sigma

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        return image.filter(PIL.ImageFilter.GaussianBlur(float(np.random.uniform(*self.sigma))))


def plain(plan: ViewPlan) -> Callable[[list[Any]], object]:
    """The usual pipeline: torchvision's transforms on PIL images, one view after the other.

    Takes arrays uint8 [H, W, 3] or PIL images.
    """
    pipelines = []
    for view in plan.views:
        assert view.scale is not None
        for copy in range(view.count):
            mode = v2.InterpolationMode(view.interpolation)
            steps = [
                v2.RandomResizedCrop(view.size, view.scale, view.ratio, interpolation=mode),
                v2.RandomHorizontalFlip(view.flip),
                v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_p),
                v2.RandomGrayscale(view.grey),
                v2.RandomApply([v2.Lambda(PilBlur(view.blur_sigma))], view.blur_of(copy)),
                v2.RandomSolarize(128, view.solarise_of(copy)),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(plan.mean, plan.std),
            ]
            pipelines.append(v2.Compose(steps))

    def run(images: list[Any]) -> object:
        pil = [PIL.Image.fromarray(x) if isinstance(x, np.ndarray) else x for x in images]
        return [torch.stack([pipeline(image) for image in pil]) for pipeline in pipelines]

    return run


def photographs() -> np.ndarray:
    """Two photographs: uint8 [2, 375, 500, 3]."""
    return np.stack([image[:375, :500] for image in load_sample_images().images])


def tiles(count: int, side: int = 32) -> np.ndarray:
    """Small crops of the photographs at half size: uint8 [count, side, side, 3]."""
    half = photographs()[:, :374].reshape(2, 187, 2, 250, 2, 3).mean((2, 4)).astype(np.uint8)
    rng = np.random.default_rng(0)
    corners = zip(
        rng.integers(0, 2, count),
        rng.integers(0, 187 - side, count),
        rng.integers(0, 250 - side, count),
        strict=True,
    )
    return np.stack([half[k, y : y + side, x : x + side] for k, y, x in corners])


def rates(plan: ViewPlan, images: np.ndarray, seconds: float) -> dict[str, float]:
    """Images per second of each candidate."""
    keys, some = np.arange(len(images)), min(len(images), 32)
    listed = list(images[:some])
    usual, slow, quick = plain(plan), ReferenceViews(plan), FastViews(plan)
    candidates: dict[str, tuple[int, Callable[[int], object]]] = {
        "fast": (len(images), lambda epoch: quick(images, keys, epoch)),
        "reference": (some, lambda epoch: slow(images[:some], keys[:some], epoch)),
        "torchvision": (some, lambda _: usual(listed)),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _, run in candidates.values():
        run(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["fast"]) < 3:
        for name, (_, run) in candidates.items():
            start = time.perf_counter()
            run(len(times[name]))
            times[name].append(time.perf_counter() - start)
    return {name: candidates[name][0] / statistics.median(t) for name, t in times.items()}


def deviations() -> list[dict[str, Any]]:
    """Differences fast - reference in levels of 255, before normalisation, same parameters."""
    jitters = {
        name: {"jitter": tuple(s if k == i else 0.0 for k in range(4)), "jitter_p": 1.0}
        for i, (name, s) in enumerate(
            [("brightness .4", 0.4), ("contrast .4", 0.4), ("saturation .4", 0.4), ("hue .1", 0.1)]
        )
    }
    cases: dict[str, dict[str, Any]] = {
        "bilinear crop": {"interpolation": "bilinear"},
        "bicubic crop": {},
        "blur": {"blur": (1.0,)},
        **jitters,
        "grey": {"grey": 1.0},
        "solarise": {"solarise": (1.0,)},
        "jitter without hue": {"jitter": (0.4, 0.4, 0.2, 0.0), "jitter_p": 1.0},
        "DINO, second global": {**COLOUR, "blur": (0.1,), "solarise": (0.2,)},
    }
    sources = {"32 px by matrices": (32, tiles(256)), "224 px by crops": (224, photographs())}
    rows = []
    for source, (size, images) in sources.items():
        for case, options in cases.items():
            view = View(**{"name": "v", "size": size, "count": 4, **options})
            plan = ViewPlan(views=(view,), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
            keys = range(len(images))
            a, b = (make(plan, 1)(images, keys, 0)["v"] for make in (ReferenceViews, FastViews))
            d = ((b - a) * 255).flatten().numpy()
            rows.append(
                {
                    "source": source,
                    "operation": case,
                    "mean_absolute": float(np.abs(d).mean()),
                    "bias": float(d.mean()),
                    "p99": float(np.quantile(np.abs(d), 0.99)),
                    "largest": float(np.abs(d).max()),
                    "mean_ratio": float(b.mean() / a.mean()),
                    "std_ratio": float(b.std() / a.std()),
                }
            )
    return rows


def environment() -> dict[str, Any]:
    """Hardware, versions, date, commit."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), cpu)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu,
        "cores_used": 1,
        "cores_present": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "commit": commit.stdout.strip() if commit.returncode == 0 else None,
        "command": " ".join(["python", "benchmarks/views.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per plan (default 5)")
    parser.add_argument("--deviations", action="store_true", help="measure fast - reference too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plans = {
        "SimCLR 2x32 from 32x32, batch 256": (simclr(32), tiles(256)),
        "DINO 2x32 + 6x16 from 32x32, batch 256": (dino(32, 16, 6), tiles(256)),
        "DINO 2x224 + 8x96 from 375x500, batch 4": (dino(224, 96, 8), photographs().repeat(2, 0)),
    }
    out: dict[str, Any] = {"environment": environment(), "images_per_second_per_core": {}}
    print(f"{'images / s on one core':<42} {'fast':>9} {'reference':>10} {'torchvision':>12}  gain")
    for name, (plan, images) in plans.items():
        r = rates(plan, images, args.seconds)
        out["images_per_second_per_core"][name] = r
        gain = r["fast"] / r["torchvision"]
        columns = f"{r['fast']:9.1f} {r['reference']:10.1f} {r['torchvision']:12.1f}"
        print(f"{name:<42} {columns} {gain:5.1f}")
    if args.deviations:
        out["deviations"] = rows = deviations()
        print(
            "\nfast - reference, levels of 255" + " " * 11 + "mean |d|   bias    p99  largest  std"
        )
        for row in rows:
            numbers = "mean_absolute", "bias", "p99", "largest", "std_ratio"
            a, b, c, d, e = (row[n] for n in numbers)
            name = f"{row['source']}: {row['operation']}"
            print(f"{name:<42} {a:8.2f} {b:6.2f} {c:6.1f} {d:8.1f} {e:5.3f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()

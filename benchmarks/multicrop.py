"""Images per second and core from JPEG files to DINO's views: nolabel and two alternatives.

    python benchmarks/multicrop.py [--data DIR] [--json FILE] [--seconds S]

The time from file to batch is measured: reading, decoding, 2 crops of 224 px and 8 of 96 px,
colour, blur, normalisation, collation. All candidates alternate on the same files; the median of
the rounds is reported.

    nolabel      the loader of training (`nolabel bench data` measures the same)
    torchvision  PIL and torchvision's transforms, as in the official code of DINO
    lightly      lightly's DINOTransform with 8 local views (if lightly is installed)

Without --data, 256 JPEG files of 500 x 375 px are cropped from the two photographs that come with
scikit-learn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from nolabel.data.loader import make_loader
from nolabel.data.open import open_source
from nolabel.data.source import Source
from nolabel.data.stages import measure_stages
from nolabel.views import FastViews
from views import dino, environment, plain

SIZE = (500, 375)


def write_photographs(folder: Path, count: int = 256) -> None:
    """Writes crops of two photographs as JPEG files of several qualities."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    for k in range(count):
        w = int(rng.uniform(440, 569))
        h = w * 3 // 4
        x, y = (int(rng.integers(0, most + 1)) for most in (640 - w, 427 - h))
        cut = photos[k % 2].crop((x, y, x + w, y + h)).resize(SIZE, Image.Resampling.BICUBIC)
        if k % 4 > 1:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cut.save(folder / f"{k:04}.jpg", quality=int(rng.integers(75, 96)))


def ours(source: Source, batch: int) -> Callable[[int], int]:
    """One step of the loader of training, without workers."""
    views = FastViews(dino(224, 96, 8))

    def run(step: int) -> int:
        loader = make_loader(
            source, views, seed=0, batch_size=batch, start_step=step, total_steps=step + 1
        )
        return sum(b.size for b in loader)

    return run


def files_of(source: Source, batch: int, step: int) -> list[str]:
    return [source.path((step * batch + k) % len(source)) for k in range(batch)]


def torchvision_way(source: Source, batch: int) -> Callable[[int], int]:
    make = plain(dino(224, 96, 8))

    def run(step: int) -> int:
        images = []
        for path in files_of(source, batch, step):
            with open(path, "rb") as file:
                images.append(Image.open(file).convert("RGB"))
        make(images)
        return batch

    return run


def lightly_way(source: Source, batch: int) -> Callable[[int], int] | None:
    try:
        from lightly.transforms import DINOTransform
    except ImportError:
        return None
    transform = DINOTransform(n_local_views=8)

    def run(step: int) -> int:
        samples = []
        for path in files_of(source, batch, step):
            with open(path, "rb") as file:
                samples.append(transform(Image.open(file).convert("RGB")))
        for views in zip(*samples, strict=True):
            torch.stack(views)
        return batch

    return run


def measure(source: Source, seconds: float, batch: int) -> dict[str, float]:
    """Images per second of each candidate."""
    candidates = {
        "nolabel": ours(source, batch),
        "torchvision": torchvision_way(source, batch),
        "lightly": lightly_way(source, batch),
    }
    available = {name: run for name, run in candidates.items() if run is not None}
    rates: dict[str, list[float]] = {name: [] for name in available}
    for run in available.values():
        run(0)
    end, step = time.perf_counter() + seconds, 1
    while time.perf_counter() < end or step < 4:
        for name, run in available.items():
            tick = time.perf_counter()
            count = run(step % max(len(source) // batch, 1))
            rates[name].append(count / (time.perf_counter() - tick))
        step += 1
    return {name: statistics.median(r) for name, r in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="a folder of JPEG files")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of all (default 60)")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = args.data or Path(made)
        if args.data is None:
            write_photographs(folder)
        source = open_source(folder)
        rates = measure(source, args.seconds, min(args.batch_size, len(source)))
        stages = measure_stages(source, dino(224, 96, 8))
    for name, rate in rates.items():
        print(f"{name:<12} {rate:7.1f} images/s on one core   x {rates['nolabel'] / rate:.2f}")
    total = sum(stages.values())
    for name, each in stages.items():
        print(f"  {name:<10} {each * 1e3:6.2f} ms  {each / total:4.0%}")
    out: dict[str, Any] = {
        "environment": environment(),
        "images_per_second_per_core": rates,
        "seconds_per_image": stages,
    }
    for package in ("lightly", "simplejpeg"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out["environment"][package] = importlib.metadata.version(package)
    out["environment"]["command"] = " ".join(["python", "benchmarks/multicrop.py", *sys.argv[1:]])
    if args.json:
        args.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()

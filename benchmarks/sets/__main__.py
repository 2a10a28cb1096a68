"""Writes a data set as a folder of files, and prints its facts.

    python -m benchmarks.sets NAME --out DIR [--seed N] [--train N] [--test N] [--json FILE]
    python -m benchmarks.sets stamps|clipart|emoji [--json FILE]

The files are DIR/train/CLASS/NUMBER.png (or .jpg) and DIR/test/CLASS/NUMBER.png. The same name,
seed and numbers give the same pixels. A folder that holds something is left as it is, and only its
facts are printed: images, sizes, classes, and the accuracy of k-NN on raw pixels of 32 x 32. So are
those of `stamps`, `clipart` and `emoji`, which are used by their names; `emoji` has no classes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import cells, named, phone, tiles, tissue
from .files import File, write

Files = Callable[[str, int, int], Iterator[File]]  # (split, count, seed) -> files
SETS: dict[str, tuple[Files, dict[str, int]]] = {
    "cells": (cells.files, cells.COUNTS),
    "tissue": (tissue.files, tissue.COUNTS),
    "tiles": (tiles.files, tiles.COUNTS),
    "phone": (phone.files, phone.COUNTS),
    "fashion": (named.fashion, named.FASHION_COUNTS),
    "creatures": (named.creatures, named.CREATURES_COUNTS),
}
BY_NAME = ("stamps", "clipart", "emoji")
_MEASURED = 50  # images whose size is read


def facts(train: str, test: str) -> dict[str, Any]:
    """Of two sources: images, sizes, classes, and the accuracy of k-NN on raw pixels."""
    import nolabel as nl
    from nolabel.data.open import open_source

    found: dict[str, Any] = {}
    labelled = True
    for split, spec in (("train", train), ("test", test)):
        source = open_source(spec)
        some = np.linspace(0, len(source) - 1, min(_MEASURED, len(source))).astype(int).tolist()
        sides = np.array([source.read(i).image.shape[:2] for i in some])
        found[split] = {
            "images": len(source),
            "height, width (median)": np.median(sides, 0).tolist(),
        }
        if source.has_files:
            found[split]["bytes"] = sum(source.size_in_bytes(i) for i in range(len(source)))
        labelled = source.labels is not None
        if source.labels is not None:
            counts = np.bincount(source.labels, minlength=len(source.classes)).tolist()
            found[split]["classes"] = dict(zip(source.classes, counts, strict=True))
    if labelled:
        report = nl.evaluate("knn", "pixels", train, test, k=(20,))
        [value] = [row["value"] for row in report.rows if row["metric"] == "top1"]
        counts = list(found["test"]["classes"].values())
        found |= {"pixels knn k=20": value, "largest class": max(counts) / sum(counts)}
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*sorted(SETS), *BY_NAME])
    parser.add_argument("--out", type=Path, help="folder of the set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, help="number of images")
    parser.add_argument("--test", type=int, help="number of images")
    parser.add_argument("--json", type=Path, help="file to which the facts are added")
    args = parser.parse_args(argv)
    if args.name in BY_NAME:
        places = [f"{args.name}:train", f"{args.name}:test"]
    elif args.out is None:
        parser.error("--out names the folder that the files are written to")
    else:
        places = [str(args.out / "train"), str(args.out / "test")]
        files, counts = SETS[args.name]
        if not (args.out.is_dir() and any(args.out.iterdir())):
            start = time.perf_counter()
            for split, number in counts.items():
                number = getattr(args, split) or number
                write(args.out / split, files(split, number, args.seed))
            print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
    found = facts(*places)
    print(json.dumps(found, indent=1))
    if args.json:
        from nolabel.engine.environment import environment

        known = json.loads(args.json.read_text()) if args.json.exists() else {"sets": {}}
        known["sets"][args.name] = found
        known["environment"] = environment()
        args.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

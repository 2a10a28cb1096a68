"""What a user gets with nothing but a folder and some minutes: every setting automatic.

    python benchmarks/evening.py --data DIR [--minutes M] [--seeds N] [--only NAME ...] [--method M]
                                 [--choose labels|free]

For each set and seed: `nolabel pretrain [METHOD] --data SRC --minutes M` in a process of its own,
timed from the command to its end, with its peak memory; then k-NN (k = 20) and a linear probe of
the encoder, of the same network before training, and of raw pixels. Finished cases are taken from
the result file, so that a stopped benchmark goes on. Folders are made by `python -m
benchmarks.sets`; those that DIR lacks are left out. --choose: the method is chosen by trial, by the
labels of the training images or without labels; to be compared with the cases of each --method.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

RESULT = Path(__file__).parent / "results" / "evening.json"
# Name -> train and test SRC; {data} is the folder of the sets that were written.
SETS = {
    "creatures": ("creatures:train", "creatures:test"),
    "fashion": ("{data}/fashion/train", "{data}/fashion/test"),
    "cells": ("{data}/cells/train", "{data}/cells/test"),
    "tissue": ("{data}/tissue/train", "{data}/tissue/test"),
    "tiles": ("{data}/tiles/train", "{data}/tiles/test"),
    "phone": ("{data}/phone/train", "{data}/phone/test"),
    "stamps": ("stamps:train", "stamps:test"),
    "clipart": ("clipart:train", "clipart:test"),
}
MOST = 10_000  # labelled images of the linear probe


def run(*args: str) -> tuple[float, float]:
    """Runs a command of nolabel; its seconds, and its peak memory in bytes."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "nolabel", *args])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"nolabel {' '.join(args)} failed")
    return time.monotonic() - began, usage.ru_maxrss * 1024.0


def train(name: str, data: str, out: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one encoder; what it took."""
    method = [args.method] if args.method else []
    if args.choose:
        method += ["--tournament", "on"]
    if args.choose == "labels":  # they judge; the curve while training would take minutes
        method += ["--probe", data, "--probe-every", "1000000"]
    seconds, peak = run(
        "pretrain", *method, "--data", data, "--minutes", f"{args.minutes:g}", "--seed", str(seed),
        "--out", str(out), "--overwrite", *args.options,
    )  # fmt: skip
    config = yaml.safe_load((out / "config.yaml").read_text())
    settings, trial = config["settings"], out / "tournament.json"
    kept = ("backbone", "image_size", "patch_size", "batch_size", "steps", "precision", "cache")
    took: dict[str, Any] = {"seconds": seconds, "peak_bytes": peak, "method": config["method"]}
    if trial.is_file():
        took["tournament"] = json.loads(trial.read_text())
    return took | {k: settings[k] for k in kept}


def measure(encoders: list[str], data: str, test: str, file: Path) -> dict[str, dict[str, float]]:
    """k-NN and linear top-1 of encoders: encoder -> protocol -> fraction."""
    run(
        "compare", *encoders, "--train", data, "--test", test, "--protocols", "knn", "linear",
        "--json", str(file),
    )  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for row in json.loads(file.read_text())["rows"]:
        if row["metric"] == "top1" and row["best"]:
            found.setdefault(row["encoder"], {})[row["protocol"]] = row["value"]
    return found


def table(cases: dict[str, Any]) -> str:
    """The cases as text."""
    lines = ["set, seed            network            steps   time    peak   k-NN: trained random pixels   linear"]  # fmt: skip  # noqa: E501
    for key, c in cases.items():
        values = [
            f"{100 * c['top1'][kind][p]:6.1f}"
            for p in ("knn", "linear") for kind in ("trained", "random", "pixels")
        ]  # fmt: skip
        network = f"{c['backbone']}@{c['image_size']}"
        lines.append(
            f"{key:<20} {network:<18} {c['steps']:>5} {c['seconds']:>6.0f}s "
            f"{c['peak_bytes'] / 1e9:>5.1f}G   {' '.join(values)}"
        )
    return "\n".join(lines)


def choices(cases: dict[str, Any]) -> list[str]:
    """Points of k-NN by which each run with a chosen method is below the best single method."""
    singles: dict[str, dict[str, float]] = {}
    for key, c in cases.items():
        if "chosen" not in key:
            place = " ".join(key.split()[:2])
            singles.setdefault(place, {})[key] = c["top1"]["trained"]["knn"]
    lines = []
    for key, c in cases.items():
        known = singles.get(" ".join(key.split()[:2]), {})
        if "chosen" in key and known:
            best = max(known, key=lambda name: known[name])
            below = 100 * (known[best] - c["top1"]["trained"]["knn"])
            name = c.get("tournament", {}).get("choice", c["method"])
            lines.append(f"{key}: {name}, {below:.1f} points below {best!r}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--work", type=Path, default=Path("runs/evening"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--method", help="instead of the automatic one")
    parser.add_argument("--choose", choices=("labels", "free"), help="the method, by trial")
    parser.add_argument("--json", type=Path, default=RESULT)
    args, args.options = parser.parse_known_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(args.json.read_text()) if args.json.exists() else {"cases": {}}
    for seed in range(args.seeds):
        for name in args.only:
            variants = (args.method, args.choose and f"chosen-{args.choose}")
            key = " ".join((name, str(seed), *(v for v in variants if v)))
            data, test = (part.format(data=args.data) for part in SETS[name])
            if key in result["cases"] or ("/" in data and not Path(data).is_dir()):
                continue
            out = args.work / key.replace(" ", "-")
            took = train(name, data, out, seed, args)
            encoders = [str(out), f"random:{out}", "pixels"]
            found = measure(encoders, data, test, args.work / "table.json")
            kinds = ("trained", "random", "pixels")
            top1 = {kind: found[e] for kind, e in zip(kinds, encoders, strict=True)}
            result["cases"][key] = {**took, "top1": top1}
            result |= {
                "command": f"python benchmarks/evening.py {' '.join(sys.argv[1:])}",
                "minutes": args.minutes,
                "environment": json.loads((out / "environment.json").read_text()),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            args.json.write_text(json.dumps(result, indent=1) + "\n")
            print("\n".join((table(result["cases"]), *choices(result["cases"]))), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()

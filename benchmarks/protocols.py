"""Evaluates several encoders with every protocol: the tables of docs/protocols.md.

    python benchmarks/protocols.py --runs DIR [--seeds N] [--data ...] [--jobs N]
    python benchmarks/protocols.py --render

The encoders are the ViTs that `methods.py --out DIR` trained (those whose folder is missing are
trained first, with the same budget), the same network with random weights (DINO's initialisation)
and trained with labels (fine-tuned from random weights), and raw pixels. One process per row; rows
that the result file has already are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from page import write_between_marks

import methods as table

RESULTS = Path(__file__).parent / "results" / "protocols.json"
DATA = ("creatures", "fashion-mnist")
TRAINED = ("dino", "ibot", "dinov2", "mae", "simclr", "clip")
ENCODERS = ("pixels", "random", *TRAINED, "supervised")
GALLERY, JUDGED = 10_000, 2_000  # most labelled images for training, and for evaluation
TUNED = {"epochs": 3, "batch": 64}  # of fine-tuning, on a fifth of the gallery
# Protocol, its options, and the setting that is reported.
COLUMNS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("knn", {"k": (20,)}, "k-NN"),
    ("linear", {}, "linear"),
    ("fewshot", {"k": (5,), "draws": 10}, "5-shot"),
    ("finetune", TUNED, "fine-tuned"),
    ("retrieval", {}, "retrieval mAP"),
    ("copies", {}, "copies mAP"),
    ("robustness", {"strengths": (3,), "epochs": 30}, "kept under corruption"),
    ("attention", {}, "attention IoU"),
    ("video", {}, "video J&F"),
    ("zeroshot", {"templates": ("a {}",)}, "zero-shot"),
)
DONE = "encoder.safetensors"  # a finished run's folder has it
MASKS = ("attention", "video")  # they need masks, which only creatures have


def one(name: str, data: str, seed: int, runs: Path) -> dict[str, Any]:
    import numpy as np

    import nolabel as nl
    from nolabel.data.open import open_source
    from nolabel.data.source import Subset
    from nolabel.errors import DataError, UsageError

    train, test = (open_source(f"{data}:{s}", image_size=32) for s in ("train", "test"))
    order = np.random.default_rng(seed).permutation(len(train))
    few = Subset(train, np.sort(order[: min(len(train), GALLERY) // 5]))
    if len(train) > GALLERY:
        train = Subset(train, np.sort(order[:GALLERY]))
    if len(test) > JUDGED:
        test = Subset(test, np.sort(np.random.default_rng(0).permutation(len(test))[:JUDGED]))
    dino = folder(runs, "dino", data, seed)
    spec = {"pixels": "pixels", "random": f"random:{dino}", "supervised": f"random:{dino}"}.get(
        name, str(folder(runs, name, data, seed))
    )
    row: dict[str, Any] = {}
    if name == "supervised":
        place = folder(runs, "supervised", data, seed)
        if not (place / DONE).exists():
            nl.evaluate("finetune", spec, train=train, test=test, epochs=10, seed=seed,
                        save=str(place))  # fmt: skip
        spec = str(place)
    for protocol, options, _ in COLUMNS:
        if protocol in MASKS and data != "creatures":
            continue
        sets: dict[str, Any] = {"train": train, "test": test}
        if protocol in (*MASKS, "zeroshot", "retrieval", "copies"):
            sets = {"test": data if protocol in MASKS else test}
        if protocol == "finetune":
            sets["train"] = few
        try:
            report = nl.evaluate(protocol, spec, **sets, **options)
        except (UsageError, DataError) as error:
            why = str(error).replace(f"{runs}/", "").split(".")[0]
            row[protocol] = {"left_out": why}
            continue
        best = report.best
        if protocol == "robustness":
            best = next(r for r in report.rows if r["metric"] == "kept")
        row[protocol] = {k: best.get(k) for k in ("setting", "metric", "value")}
    return row


def folder(runs: Path, name: str, data: str, seed: int) -> Path:
    return table.folder(runs, (name, "vit_pico", data, seed))


def train(name: str, data: str, seed: int, runs: Path) -> None:
    """Trains a missing run of the methods' table."""
    budgets = json.loads(table.RESULTS.read_text())["budgets"]
    steps = budgets[f"{name} vit_pico {data}"]["steps"]
    table.train(name, "vit_pico", data, seed, steps, folder(runs, name, data, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="of methods.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes, sharing the cores")
    parser.add_argument("--data", nargs="*", default=list(DATA))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="only write the tables of the docs")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        name, data, seed = args.train
        return train(name, data, int(seed), args.runs)
    if args.one:
        name, data, seed = args.one
        return print(json.dumps(one(name, data, int(seed), args.runs)))
    found = json.loads(args.json.read_text()) if args.json.exists() else {"rows": {}}
    if not args.render:
        run_all(args, found)
    render(found)


def run_all(args: argparse.Namespace, found: dict[str, Any]) -> None:
    from nolabel.engine.environment import environment

    rows = found["rows"]
    threads = str(max((os.cpu_count() or 1) // args.jobs, 1))
    todo = [
        (name, data, seed)
        for seed in range(args.seeds) for data in args.data for name in ENCODERS
        if f"{name} {data} {seed}" not in rows and not (name == "clip" and data != "creatures")
    ]  # fmt: skip
    # Random weights, and those trained with labels, have DINO's initialisation.
    needed = [(n if n in TRAINED else "dino", d, s) for n, d, s in todo if n != "pixels"]
    missing = [c for c in dict.fromkeys(needed) if not (folder(args.runs, *c) / DONE).exists()]
    write = threading.Lock()

    def call(what: str, cell: tuple[str, str, int]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, __file__, what, *map(str, cell), "--runs", str(args.runs)]
        own = {**os.environ, "OMP_NUM_THREADS": threads}
        return subprocess.run(command, check=False, capture_output=True, text=True, env=own)

    def make(cell: tuple[str, str, int]) -> None:
        done = call("--train", cell)
        said = f"failed: {done.stderr.strip().splitlines()[-1:]}" if done.returncode else "trained"
        print(" ".join(map(str, cell)), said, flush=True)

    def work(cell: tuple[str, str, int]) -> None:
        done = call("--one", cell)
        key = " ".join(map(str, cell))
        with write:
            if done.returncode:
                print(f"{key} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                return
            rows[key] = json.loads(done.stdout.strip().splitlines()[-1])
            found["environment"] = environment()
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")
            said = {p: f"{v['value']:.1%}" for p, v in rows[key].items() if "value" in v}
            print(f"{key}: {said}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(make, missing))
        list(pool.map(work, todo))


def render(found: dict[str, Any]) -> None:
    """Writes the tables between the marks in docs/protocols.md."""
    lines: list[str] = []
    for data in DATA:
        table = {
            name: [r for k, r in found["rows"].items() if k.split()[:2] == [name, data]]
            for name in ENCODERS
        }
        shown = [c for c in COLUMNS if any(c[0] in r for runs in table.values() for r in runs)]
        seeds = max((len(runs) for runs in table.values()), default=0)
        if not seeds:
            continue
        lines += [
            f"`{data}`, {seeds} seed{'s' * (seeds > 1)}, in per cent:", "",
            "| encoder | " + " | ".join(title for _, _, title in shown) + " |",
            "|---" * (len(shown) + 1) + "|",
        ]  # fmt: skip
        for name, runs in table.items():
            if runs:
                cells = [cell([r.get(p, {}) for r in runs]) for p, _, _ in shown]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    write_between_marks("protocols", "\n".join(lines), page="protocols.md")


def cell(values: list[dict[str, Any]]) -> str:
    """Mean and, over several seeds, the standard deviation."""
    numbers = [100 * v["value"] for v in values if "value" in v]
    if not numbers:
        return "-"
    mean = sum(numbers) / len(numbers)
    if len(numbers) < 2:
        return f"{mean:.1f}"
    deviation = (sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1)) ** 0.5
    return f"{mean:.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    main()

"""Compares all methods: same small networks, same data, same training time, several seeds.

    python benchmarks/methods.py --measure [--minutes M]   # how many steps fit into the minutes
    python benchmarks/methods.py [--minutes M] [--seeds N] [--data ...] [--methods ...] [--out DIR]
    python benchmarks/methods.py --render        # the table of docs/methods.md from the result file

First, --measure times a few steps of every method, on an otherwise idle machine: how many steps fit
into the minutes, and how many images per second that is. Then each run takes that number of steps,
whatever the load of the machine, the same number for all seeds.

Each run is a separate process, so that its peak memory can be measured; --jobs of them run at a
time, each with its share of the cores. Labels are used for evaluation only: k-NN (k = 20) and a
linear probe on unseen images, the effective rank of their embeddings (RankMe), and k-NN of the same
network with random weights. The result file is written after every run; a stopped table can be
continued.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from child import child
from page import write_between_marks

if TYPE_CHECKING:
    from nolabel import Run

RESULTS = Path(__file__).parent / "results" / "methods.json"
DATA = ("creatures", "fashion-mnist")
CONV = (  # methods that are usually trained on ResNets too
    "autoencoder", "vqvae", "dvae", "triplet", "simclr", "mocov2", "mocov3", "clip", "siglip",
    "swav", "deepclusterv2", "obow", "barlow", "distill", "byol", "dino",
)  # fmt: skip
GALLERY = 10_000  # most labelled images used, so that evaluation takes no longer than training
K = {"knn": {"k": (20,)}}
MEASURED, SKIPPED = 12, 4  # steps of a measurement; warm-up steps among them
NEAR = 0.12  # largest relative difference of a run's steps from the budget
CAPTIONS = ("clip", "siglip")  # Fashion-MNIST has no captions


def one(method: str, backbone: str, data: str, seed: int, steps: int, out: Path) -> dict:
    """Trains and evaluates one run, in this process; with MEASURED steps, only times it."""
    import numpy as np

    import nolabel as nl
    from nolabel.data.open import open_source
    from nolabel.data.source import Subset
    from nolabel.encoders.features import extract
    from nolabel.engine.monitor.signals import effective_rank

    if steps == MEASURED:
        out = out.with_name(out.name + "-measured")
        run = train(method, backbone, data, seed, steps, out, log_every=1)
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()[SKIPPED:]
        rates = sorted(json.loads(line)["images_per_second"] for line in lines)
        rate = rates[len(rates) // 2]
        return {"images_per_second": rate, "batch": run.settings.batch_size}
    began = time.monotonic()
    run = train(method, backbone, data, seed, steps, out)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row: dict[str, Any] = {"seconds": seconds, "peak_bytes": peak, "steps": run.settings.steps}
    train, test = open_source(f"{data}:train", image_size=32), f"{data}:test"
    if len(train) > GALLERY:
        some = np.random.default_rng(0).choice(len(train), GALLERY, replace=False)
        train = Subset(train, np.sort(some))
    protocols = ("knn", "linear")
    judged = nl.compare([str(out)], train=train, test=test, protocols=protocols, options=K)
    row |= {report.protocol: report.best["value"] for report in judged.reports}
    judged = nl.compare([f"random:{out}"], train=train, test=test, options=K)
    row["random_knn"] = judged.reports[0].best["value"]
    unseen = open_source(test, image_size=32)
    z = extract(nl.load(str(out)), Subset(unseen, range(min(2000, len(unseen))))).values
    row["effective_rank"] = effective_rank(z)
    row["dim"] = z.shape[1]
    return row


def train(
    method: str, backbone: str, data: str, seed: int, steps: int, out: Path, **more: Any
) -> Run:
    """Trains one run of the table. Teachers are runs in the same folder."""
    import nolabel as nl

    given: dict[str, Any] = {"patch_size": 4} if "vit" in backbone else {}
    if kind := teacher(method):
        given["teacher"] = str(out.parent / "-".join((*kind, data, str(seed))))
    return nl.pretrain(
        method, data=data, backbone=backbone, seed=seed, steps=steps, image_size=32, workers=0,
        precision="fp32", out=str(out), overwrite=True, quiet=True, **given, **more,
    )  # fmt: skip


def teacher(method: str) -> tuple[str, str] | None:
    """Method and backbone of the run that is the teacher of distill, eva or beit; or None."""
    return {"distill": ("simclr", "resnet_nano"), "eva": ("simclr", "resnet_nano"),
            "beit": ("vqvae", "vit_pico")}.get(method)  # fmt: skip


def cells(methods: list[str], data: list[str], seeds: int) -> list[tuple[str, str, str, int]]:
    rows = [(m, "vit_pico") for m in methods] + [(m, "resnet_nano") for m in methods if m in CONV]
    return [
        (m, b, d, s)
        for s in range(seeds)  # complete the table for one seed first
        for d in data
        for m, b in rows
        if not (m in CAPTIONS and d == "fashion-mnist")
    ]


def main() -> None:
    from nolabel.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="training of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing the cores")
    parser.add_argument("--data", nargs="*", default=list(DATA))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="folder of the runs")
    parser.add_argument("--json", type=Path, default=RESULTS, help="result file")
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    parser.add_argument("--measure", action="store_true", help="only count the steps that fit")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        method, backbone, data, seed, steps = args.one
        out = folder(args.out, (method, backbone, data, int(seed)))
        print(json.dumps(one(method, backbone, data, int(seed), int(steps), out)))
        return
    if not args.render:
        run_all(args)
    render(json.loads(args.json.read_text()))


def run_all(args: argparse.Namespace) -> None:
    from nolabel.engine.environment import environment

    found: dict[str, Any] = {}
    if args.json.exists():
        found = json.loads(args.json.read_text())
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    asked = {"minutes": args.minutes, "threads": threads}
    if {k: found.setdefault(k, v) for k, v in asked.items()} != asked:
        sys.exit(f"{args.json} is of other settings than {asked}. Use another --json.")
    rows, budgets = found.setdefault("rows", {}), found.setdefault("budgets", {})
    wanted = cells(args.methods, args.data, args.seeds)
    if args.measure:
        todo = [c for c in wanted if c[3] == 0 and budget_key(c) not in budgets]
    else:
        missing = sorted({budget_key(c) for c in wanted if budget_key(c) not in budgets})
        if missing:
            sys.exit(f"{len(missing)} budgets are missing, first {missing[0]!r}. Use --measure.")
        todo = [c for c in wanted if not done_already(rows.get(key(c)), budgets[budget_key(c)])]
    needed = {(*kind, c[2], c[3]) for c in todo if (kind := teacher(c[0]))}
    first = [c for c in sorted(needed) if c in todo or not folder(args.out, c).exists()]
    write = threading.Lock()

    def work(cell: tuple[str, str, str, int]) -> None:
        steps = MEASURED if args.measure else budgets[budget_key(cell)]["steps"]
        one = ("--one", *map(str, cell), str(steps), "--out", str(args.out))
        row = child(__file__, *one, threads=threads, name=key(cell))
        if row is None:
            return
        with write:
            if args.measure:
                steps = max(int(args.minutes * 60 * row["images_per_second"] / row["batch"]), 1)
                budgets[budget_key(cell)] = {**row, "steps": steps}
                print(f"{budget_key(cell)}: {steps} steps", flush=True)
            else:
                rows[key(cell)] = row
                print(f"{key(cell)}: k-NN {row['knn']:.1%} (random {row['random_knn']:.1%}), "
                      f"linear {row['linear']:.1%}, {row['steps']} steps", flush=True)  # fmt: skip
            found["environment"] = environment()
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")

    if args.measure:
        first = []
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, first))  # teachers first
        list(pool.map(work, [c for c in todo if c not in first]))


def budget_key(cell: tuple[str, str, str, int]) -> str:
    return " ".join(cell[:3])


def done_already(row: dict[str, Any] | None, budget: dict[str, Any]) -> bool:
    """Whether a run took about as many steps as its budget."""
    return row is not None and abs(row["steps"] / budget["steps"] - 1) <= NEAR


def key(cell: tuple[str, str, str, int]) -> str:
    return " ".join(map(str, cell))


def folder(out: Path, cell: tuple[str, str, str, int]) -> Path:
    return out / "-".join(map(str, cell))


def render(found: dict[str, Any]) -> None:
    """Writes the tables between the marks in docs/methods.md."""
    rows: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for name, row in found["rows"].items():
        method, backbone, data, _ = name.split()
        budget = found["budgets"][f"{method} {backbone} {data}"]
        if not done_already(row, budget):
            continue
        row = {**row, "images_per_second": budget["images_per_second"]}
        rows.setdefault((data, backbone), {}).setdefault(method, []).append(row)
    threads, machine = found["threads"], found["environment"]["cpu"]
    lines = [
        f"As many training steps as fit into {found['minutes']:g} minutes of {threads} "
        f"thread{'s' * (threads > 1)} of a CPU ({machine}), counted beforehand (± {NEAR:.0%}); "
        f"images of 32 px. k-NN (k = 20) and linear probe: top-1 on unseen images, "
        f"with at most {GALLERY:,} labelled ones; ± is the standard deviation over the seeds.", "",
    ]  # fmt: skip
    for (data, backbone), table in rows.items():
        lines += [
            f"`{data}`, `{backbone}`:", "",
            "| method | k-NN | linear | random k-NN | images/s | peak memory | effective rank "
            "| seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        ranked = sorted(table.items(), key=lambda kv: -mean(kv[1], "knn"))
        for method, runs in ranked:
            lines.append(
                f"| {method} | {spread(runs, 'knn')} | {spread(runs, 'linear')} "
                f"| {mean(runs, 'random_knn'):.1%} | {mean(runs, 'images_per_second'):,.0f} "
                f"| {mean(runs, 'peak_bytes') / 1e9:.1f} GB "
                f"| {mean(runs, 'effective_rank'):.0f} of {runs[0]['dim']} | {len(runs)} |"
            )
        lines.append("")
    write_between_marks("table", "\n".join(lines))


def mean(runs: list[dict], what: str) -> float:
    return sum(r[what] for r in runs) / len(runs)


def spread(runs: list[dict], what: str) -> str:
    """Mean and, over several seeds, the standard deviation, in percentage points."""
    m = mean(runs, what)
    if len(runs) < 2:
        return f"{m:.1%}"
    sd = (sum((r[what] - m) ** 2 for r in runs) / (len(runs) - 1)) ** 0.5
    return f"{100 * m:.1f} ± {100 * sd:.1f} %"


if __name__ == "__main__":
    main()

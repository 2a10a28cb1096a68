"""How well label-free measures agree with k-NN, and what choosing by them costs.

    python benchmarks/labelfree.py --train --data DIR [--seconds S] [--jobs N] [--only SET ...]
    python benchmarks/labelfree.py --runs DIR [--images N]
    python benchmarks/labelfree.py --render

--train: short checkpoints of methods and of settings, as a tournament judges them: a schedule of
4 S seconds of which the first S are trained, with three checkpoints. Each case is trained on two
halves of the images, so that the agreement of two networks can be measured. Recorded: k-NN
(k = 20) by the labels of the test images, and every label-free measure on the training images. Each
case is a process with one thread. Finished cases are kept, so that a stopped benchmark goes on;
folders of sets are made by `python -m benchmarks.sets`, and those that DIR lacks are left out.
Printed: Spearman's rank correlation with k-NN over all checkpoints of a set, and the regret: by how
much k-NN at the end is below the best case's, if a case is chosen by the measure at a checkpoint.

--runs: the rank correlation over all methods of one network and one data set, of the runs of
`methods.py --out DIR`. For alpha-ReQ, the distance to 1 is ranked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from child import child
from evening import SETS
from page import write_between_marks

HERE = Path(__file__).parent / "results"
RESULTS, METHODS = HERE / "labelfree.json", HERE / "methods.json"
CHECKPOINTS = HERE / "labelfree_checkpoints.json"
MEASURES = ("RankMe", "LiDAR", "alpha-ReQ", "self-retrieval")
# Case -> method, and options that differ from its automatic recipe.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("simclr", {}),
    "simclr-whole": ("simclr", {"scale": (0.6, 1.0)}),
    "simclr-colour": ("simclr", {"strength": 0.16, "grey": 0.1}),
    "simclr-strong": ("simclr", {"strength": 0.8}),
    "simclr-rate": ("simclr", {"lr": 0.012}),
    "triplet": ("triplet", {}),
    "barlow": ("barlow", {}),
    "byol": ("byol", {}),
    "mocov3": ("mocov3", {}),
    "dino": ("dino", {}),
    "autoencoder": ("autoencoder", {}),
    "mae": ("mae", {}),
}
NETWORK = {"backbone": "resnet_nano", "image_size": 32}
OF_MAE = {"backbone": "vit_pico", "image_size": 32, "patch_size": 4}
PARTS = 3  # checkpoints
SCHEDULE = 4  # times the seconds that are trained
IMAGES, VIEWS, FEW = 300, 12, 4  # of the measures; FEW: views of the second LiDAR
GALLERY, TESTED = 3000, 1000  # labelled images


def case(name: str, data: str, test: str, seconds: float, seed: int) -> list[dict[str, float]]:
    """Trains and measures the checkpoints of a case, in this process."""
    import torch

    from nolabel.data.open import open_source
    from nolabel.data.order import evenly_spaced
    from nolabel.data.source import Subset
    from nolabel.encoders.features import extract
    from nolabel.engine.stop import StopRequest
    from nolabel.protocols._invariance import neighbours_kept
    from nolabel.protocols.knn import run_knn

    torch.set_num_threads(1)
    whole = open_source(data, image_size=32)
    halves = [Subset(whole, range(first, len(whole), 2)) for first in (0, 1)]
    gallery = Subset(whole, evenly_spaced(len(whole), GALLERY))
    held = open_source(test, image_size=32)
    tested = Subset(held, evenly_spaced(len(held), TESTED))
    some = Subset(whole, evenly_spaced(len(whole), IMAGES))
    with tempfile.TemporaryDirectory() as folder:
        both = [
            contender(name, data, half, seconds, seed + i, Path(folder) / str(i))
            for i, half in enumerate(halves)
        ]
        before = extract(both[0].encoder, some, progress=False).values
        rows = []
        for part in range(PARTS):
            for one in both:
                one.train(seconds / PARTS, StopRequest())
            encoder = both[0].encoder
            own, other = (extract(c.encoder, some, progress=False).values for c in both)
            row = measures(encoder, some)
            row |= {
                "agreement of halves": neighbours_kept(own, other),
                "agreement with before": neighbours_kept(own, before),
                "knn": float(run_knn(encoder, gallery, tested, k=(20,)).rows[0]["value"]),
                "checkpoint": part + 1, "steps": both[0].steps,
            }  # fmt: skip
            rows.append(row)
            before = own
    return rows


def contender(name: str, data: str, source: Any, seconds: float, seed: int, out: Path) -> Any:
    """A case as it would take part in a tournament."""
    import torch

    from nolabel.config import Request
    from nolabel.engine.build import build
    from nolabel.engine.measurement import measurement
    from nolabel.engine.resolve import resolve
    from nolabel.engine.tournament import Contender
    from nolabel.engine.trainer import Trainer
    from nolabel.nn.random_state import rng_state
    from nolabel.recipes.candidates import Candidate

    method, options = CASES[name]
    request = Request.of(
        method, data=data, out=str(out), minutes=SCHEDULE * seconds / 60, seed=seed, workers=0,
        precision="fp32", device="cpu", **(OF_MAE if method == "mae" else NETWORK), **options,
    )  # fmt: skip
    resolved = resolve(request, source=source, quiet=True)
    built = build(resolved)
    run = measurement(resolved, built.method, built.plan, torch.device("cpu"), quiet=True)
    built.method.options = run.options
    trainer = Trainer(run, built.method, built.plan, source, torch.device("cpu"))
    return Contender(
        candidate=Candidate(name=name, method=method, why=""), resolved=resolved, built=built,
        trainer=trainer, rng=rng_state(),
    )  # fmt: skip


def measures(encoder: Any, images: Any) -> dict[str, float]:
    """Every label-free measure of one encoder."""
    from nolabel.protocols import labelfree

    o = labelfree.Options(images=IMAGES, views=VIEWS)
    report = labelfree.run_labelfree(encoder, None, images, images=IMAGES, views=VIEWS)
    few = labelfree.embed_views(encoder, images, labelfree.Options(images=IMAGES, views=FEW))
    n, _, dim = few.shape
    row = {r["setting"]: float(r["value"]) for r in report.rows}
    row[f"LiDAR of {FEW} views"] = labelfree.lidar(few) / min(dim, n - 1)
    return row | {"views": float(o.views)}


def train_all(args: argparse.Namespace) -> None:
    """Runs the cases that are missing, `--jobs` at a time, and prints the tables."""
    file: Path = args.json
    found = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    if found.setdefault("seconds", args.seconds) != args.seconds:
        sys.exit(f"{file} has cases of {found['seconds']} s, not of {args.seconds:g} s.")
    places = {k: tuple(part.format(data=args.data) for part in SETS[k]) for k in args.only}
    todo = [
        (data, name)
        for name in args.cases
        for data, (place, _) in places.items()
        if f"{data} {name}" not in found["rows"] and ("/" not in place or Path(place).is_dir())
    ]
    write = threading.Lock()

    def work(cell: tuple[str, str]) -> None:
        data, name = cell
        one = ("--one", name, *places[data], "--seconds", str(args.seconds))
        rows = child(__file__, *one, threads=1, name=f"{data} {name}")
        if rows is None:
            return
        with write:
            found["rows"][f"{data} {name}"] = rows
            file.write_text(json.dumps(found, indent=1) + "\n")
            knn = ", ".join(f"{r['knn']:.1%} ({r['steps']} steps)" for r in rows)
            print(f"{data} {name}: k-NN {knn}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, todo))
    print("\n".join(tables(found["rows"])))


Score = Callable[[dict[str, float]], float]


def scores() -> dict[str, Score]:
    """Name of a measure -> what is ranked, more is better."""
    names = (
        "RankMe", "LiDAR", f"LiDAR of {FEW} views", "alpha-ReQ", "self-retrieval",
        "retrieval of parts", "retrieval with noise", "retrieval of turned", "neighbours kept",
        "turns told", "agreement of halves", "agreement with before",
    )  # fmt: skip
    out: dict[str, Score] = {name: lambda row, name=name: row[name] for name in names}
    out["alpha-ReQ"] = lambda row: -abs(row["alpha-ReQ"] - 1)
    return out


def tables(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """Rank correlations and regrets, a line for each measure and a column for each set."""
    from scipy.stats import spearmanr

    sets: dict[str, dict[str, list[dict[str, float]]]] = {}
    for key, checkpoints in rows.items():
        data, name = key.split()
        sets.setdefault(data, {})[name] = checkpoints
    sets = {data: cases for data, cases in sets.items() if len(cases) > 1}
    if not sets:
        return ["Fewer than two cases of a set: nothing to compare."]
    head = " | ".join((*sets, "mean"))
    out = []
    ranked = scores()
    for title, points in (
        ("Spearman's rank correlation with k-NN, all checkpoints", range(PARTS)),
        ("the same, last checkpoints", (PARTS - 1,)),
    ):
        out += ["", title, f"| measure | {head} |", "|---" * (len(sets) + 2) + "|"]
        for name, score in ranked.items():
            values = []
            for cases in sets.values():
                some = [c[i] for c in cases.values() for i in points]
                values.append(spearmanr([score(r) for r in some], [r["knn"] for r in some])[0])
            out.append(_line(name, values, "+.2f"))
    chosen_by: dict[str, Score] = {**ranked, "k-NN by labels": lambda row: row["knn"]}
    for part in range(PARTS):
        out += ["", f"Regret in points of k-NN at the end, chosen at checkpoint {part + 1}",
                f"| chosen by | {head} |", "|---" * (len(sets) + 2) + "|"]  # fmt: skip
        for name, score in chosen_by.items():
            values = [regret(cases, score, part) for cases in sets.values()]
            out.append(_line(name, values, ".1f"))
        always = [_below(cases, "simclr") for cases in sets.values() if "simclr" in cases]
        out.append(_line("always simclr", always, ".1f"))
    return out


def regret(cases: dict[str, list[dict[str, float]]], score: Score, part: int) -> float:
    """Points of k-NN that are lost at the end by the choice at a checkpoint."""
    return _below(cases, max(cases, key=lambda name: score(cases[name][part])))


def _below(cases: dict[str, list[dict[str, float]]], name: str) -> float:
    best = max(c[-1]["knn"] for c in cases.values())
    return 100 * (best - cases[name][-1]["knn"])


def _line(name: str, values: list[float], form: str) -> str:
    mean = sum(values) / max(len(values), 1)
    return f"| {name} | " + " | ".join(f"{v:{form}}" for v in (*values, mean)) + " |"


def measure(runs: Path, images: int, found: dict[str, Any]) -> None:
    import nolabel as nl
    from nolabel.engine.environment import environment

    table = json.loads(METHODS.read_text())["rows"]
    for key, row in table.items():
        folder = runs / "-".join(key.split())
        if key in found["rows"] or not (folder / "encoder.safetensors").exists():
            continue
        data = key.split()[2]
        report = nl.evaluate("labelfree", str(folder), test=f"{data}:test", images=images, views=6)
        found["rows"][key] = {r["setting"]: r["value"] for r in report.rows} | {"knn": row["knn"]}
        print(key, {k: round(v, 3) for k, v in found["rows"][key].items()}, flush=True)
        found |= {"images": images, "views": 6, "environment": environment()}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def render(found: dict[str, Any]) -> None:
    from scipy.stats import spearmanr

    groups: dict[tuple[str, str], list[dict[str, float]]] = {}
    for key, row in found["rows"].items():
        _, backbone, data, _ = key.split()
        groups.setdefault((data, backbone), []).append(row)
    lines = [
        f"Rank correlation (Spearman) with k-NN over the runs of the table in [methods.md]"
        f"(methods.md), {found['images']:,} images in {found['views']} views; ± is the standard "
        "error of a correlation over that many runs.", "",
        "| runs | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|",
    ]  # fmt: skip
    for (data, backbone), rows in groups.items():
        cells = []
        for name in MEASURES:
            values = [-abs(r[name] - 1) if name == "alpha-ReQ" else r[name] for r in rows]
            rho = spearmanr(values, [r["knn"] for r in rows])[0]
            cells.append(f"{rho:+.2f} ± {(1 - rho**2) / max(len(rows) - 2, 1) ** 0.5:.2f}")
        lines.append(f"| {len(rows)} of `{backbone}` on `{data}` | " + " | ".join(cells) + " |")
    write_between_marks("labelfree", "\n".join([*lines, ""]), page="protocols.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train and measure short checkpoints")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the sets")
    parser.add_argument("--seconds", type=float, default=75.0, help="training of each network")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time, one thread each")
    sets = [name for name in SETS if name != "phone"]
    parser.add_argument("--only", nargs="*", default=sets, choices=list(SETS))
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--json", type=Path, default=CHECKPOINTS, help="file of --train")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="of methods.py")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(case(*args.one, args.seconds, seed=0)))
        return
    if args.train:
        train_all(args)
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not args.render:
        measure(args.runs, args.images, found)
    render(found)


if __name__ == "__main__":
    main()

"""Speed of this tree against another commit: training steps, views and reading, in turns.

    git worktree add ../before COMMIT
    python benchmarks/against.py ../before [--only NAME ...] [--rounds N] [--json FILE]

Each tree runs in a process of its own with its own `src` and `benchmarks`. Both build the same work
of a job, then they take turns, one repetition each; the order is swapped after every pair. Several
rounds do so with fresh processes, because where a process happens to place its memory changes its
speed by some percent. A pair gives seconds(before) / seconds(after), so that 1.00 means equal speed
and more means faster now. Reported: the median over rounds of each round's median, its range, and
the median rates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
JOBS = {  # name: (pairs of a round, images of one repetition)
    "step dino fp32": (5, 4),
    "step mae fp32": (5, 4),
    "step dino bf16": (5, 4),
    "step mae bf16": (5, 4),
    "views simclr 32": (30, 256),
    "views dino 32": (30, 256),
    "views dino 224": (30, 4),
    "multicrop": (5, 64),
}


def build(job: str, folder: Path) -> Callable[[int], object]:
    """The work of one repetition, made with the modules of the tree that this process serves."""
    kind, *words = job.split()
    if kind == "step":
        import step

        backbone = {"dino": "vit_small_patch16_224", "mae": "vit_base_patch16_224"}[words[0]]
        once = step.ours(words[0], backbone, 4, words[1])
        return lambda _: once()
    import torch

    torch.set_num_threads(1)
    if kind == "views":
        import numpy as np

        import views

        plan, images = {
            "simclr 32": lambda: (views.simclr(32), views.tiles(256)),
            "dino 32": lambda: (views.dino(32, 16, 6), views.tiles(256)),
            "dino 224": lambda: (views.dino(224, 96, 8), views.photographs().repeat(2, 0)),
        }[" ".join(words)]()
        fast, keys = views.FastViews(plan), np.arange(len(images))
        return lambda i: fast(images, keys, i)
    import multicrop

    return multicrop.ours(multicrop.open_source(folder), 64)


def serve(folder: Path) -> None:
    """Read a job's name, then one number for each repetition; answer with its seconds."""
    sys.path.remove(str(HERE))  # this file's own folder would shadow the other tree's benchmarks
    work: Callable[[int], object] | None = None
    for line in sys.stdin:
        if line.startswith("job "):
            work = build(line[4:].strip(), folder)
            work(0)
            print("ready", flush=True)
        elif work is not None:
            began = time.perf_counter()
            work(int(line))
            print(time.perf_counter() - began, flush=True)


class Tree:
    """A process that runs the benchmarks of one source tree."""

    def __init__(self, root: Path, data: Path):
        paths = [str(root / "src"), str(root / "benchmarks")]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "against.py"), str(root), "--serve", str(data)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"the process of {self.process.args!r} ended at {line!r}")
        return answer


def measure(job: str, rounds: int, roots: dict[str, Path], data: Path) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in roots}
    medians: list[float] = []
    for r in range(rounds):
        # The processes start in turns too: the first one gets the better memory.
        order = sorted(roots, reverse=bool(r % 2))
        trees = {name: Tree(roots[name], data) for name in order}
        for tree in trees.values():
            tree.ask(f"job {job}")
        ratios: list[float] = []
        for i in range(JOBS[job][0]):
            once: dict[str, float] = {}
            for name in sorted(trees, reverse=bool(i % 2)):
                once[name] = float(trees[name].ask(str(i % 4)))
                seconds[name].append(once[name])
            ratios.append(once["before"] / once["after"])
        medians.append(statistics.median(ratios))
        for tree in trees.values():
            tree.process.kill()
            tree.process.wait()
    rates = {name: JOBS[job][1] / statistics.median(s) for name, s in seconds.items()}
    speed_up = statistics.median(medians)
    print(f"{job:<16} {rates['before']:9.2f} {rates['after']:9.2f} images/s   {speed_up:.3f} "
          f"({min(medians):.3f} to {max(medians):.3f})", flush=True)  # fmt: skip
    return {"images_per_second": rates, "speed_up": speed_up, "rounds": medians}


def commit(root: Path) -> str:
    found = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=9"],
        capture_output=True,
        check=False,
        text=True,
    )
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="the other source tree")
    parser.add_argument("--only", nargs="*", default=list(JOBS), help="jobs by name")
    parser.add_argument("--rounds", type=int, default=6, help="fresh processes (default 6)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    after = HERE.parent
    with tempfile.TemporaryDirectory() as data:
        from multicrop import environment, write_photographs

        write_photographs(Path(data))
        roots = {"before": args.before.resolve(), "after": after}
        rows = {job: measure(job, args.rounds, roots, Path(data)) for job in args.only}
    machine = environment() | {"command": " ".join(["python", *sys.argv])}
    found = {"environment": machine, "before": commit(args.before), "after": commit(after),
             "rows": rows}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

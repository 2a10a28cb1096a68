"""Endurance of training: memory leaks, kill and resume, cost of checkpoints.

    python benchmarks/endurance.py [--what soak kills saves] [--steps N] [--kills N]
    python benchmarks/endurance.py --render

soak   ten thousand steps with two workers and a checkpoint every 500: memory and open files of the
       processes over time
kills  a run killed (SIGKILL) at random steps and resumed, compared with an uninterrupted run: bytes
       of the encoder file; without workers, with two, and on two ranks
saves  seconds of a checkpoint at the papers' model sizes, as a share of half an hour; and seconds
       from `nolabel resume` to the first batch of the next step
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from page import write_between_marks

RESULTS = Path(__file__).parent / "results" / "endurance.json"
WHAT = ("soak", "kills", "saves")
SMALL = ["--data", "creatures", "--backbone", "vit_pico", "--batch-size", "8", "--hidden", "32",
         "--projection", "8", "--precision", "fp32", "--device", "cpu"]  # fmt: skip
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HALF_HOUR = 1800.0
EVERY = 50  # steps between measurements of memory


def start(*args: str, processes: int = 1) -> subprocess.Popen[str]:
    many = TORCHRUN if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *many, "-m", "nolabel", *args], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"failed: {said.strip().splitlines()[-1:]}")


def end(process: subprocess.Popen[str]) -> None:
    """Kills a process and all its descendants (SIGKILL)."""
    for pid in [process.pid, *children(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def lines(folder: Path) -> list[dict[str, Any]]:
    from nolabel.engine.monitor.metrics import read_metrics

    return read_metrics(folder / "metrics.jsonl")


def step_of(folder: Path) -> int:
    """Number of steps in the run's metrics."""
    found = lines(folder)
    return found[-1]["step"] if found else 0


def soak(place: Path, steps: int) -> dict[str, Any]:
    """Memory and open files of all processes of a run, every 50 steps.

    They fluctuate with the batches that workers hold, so that a trend needs many measurements.
    """
    out = place / "soak"
    given = ["--steps", str(steps), "--workers", "2", "--checkpoint-every", "500",
             "--log-every", "50", "--out", str(out)]  # fmt: skip
    process, seen = start("pretrain", "simclr", *SMALL, *given), []
    while process.poll() is None:
        time.sleep(0.2)
        done = step_of(out)
        if EVERY * (len(seen) + 1) <= done < steps:
            with contextlib.suppress(OSError):  # a worker that exits during the measurement
                family = [process.pid, *children(process.pid)]
                seen.append(
                    {
                        "step": done,
                        "processes": len(family),
                        "bytes": sum(map(resident, family)),
                        "files": sum(len(os.listdir(f"/proc/{p}/fd")) for p in family),
                    }
                )
                if not len(seen) % 10:
                    print(seen[-1], flush=True)
    finish(process)
    late = [s for s in seen if s["step"] >= 1000]
    x, y = [s["step"] / 1000 for s in late], [s["bytes"] / 1e6 for s in late]
    files = [s["files"] for s in late]
    slope, noise = np.polyfit(x, y, 1, cov=True)
    return {
        "steps": steps,
        "megabytes_per_1000_steps": float(slope[0]),
        "standard_error": float(noise[0, 0] ** 0.5),
        "megabytes": sum(y) / len(y),
        "open_files": [min(files), max(files)],
        "seen": seen,
    }


def resident(pid: int) -> int:
    """Proportional set size of a process's anonymous and shared memory, in bytes.

    Memory that forked workers share is counted once. Mapped files are not counted, since other
    programs may share them.
    """
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    )
    return sum(int(fields[f"Pss_{kind}"].split()[0]) for kind in ("Anon", "Shmem")) * 1024


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def kills(place: Path, number: int) -> list[dict[str, Any]]:
    out = []
    for workers, processes in ((0, 1), (2, 1), (0, 2)):
        name = f"workers-{workers}-processes-{processes}"
        rng = random.Random(name)
        given = ["--steps", "200", "--workers", str(workers), "--checkpoint-every", "5",
                 "--log-every", "1"]  # fmt: skip
        whole, killed = place / f"{name}-whole", place / f"{name}-killed"
        finish(start("pretrain", "simclr", *SMALL, *given, "--out", str(whole),
                     processes=processes))  # fmt: skip
        # If the run has passed a moment already when it resumes, it is killed at once.
        moments = sorted(rng.randrange(1, 198) for _ in range(number))
        at = []
        for i, moment in enumerate(moments):
            args = ["resume", str(killed)]
            if not i:
                args = ["pretrain", "simclr", *SMALL, *given, "--out", str(killed)]
            process = start(*args, processes=processes)
            while process.poll() is None and step_of(killed) < moment:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.1)
            end(process)
            at.append(step_of(killed))
        finish(start("resume", str(killed), processes=processes))
        same = len({(f / "encoder.safetensors").read_bytes() for f in (whole, killed)}) == 1
        losses = [[line["loss"] for line in lines(f)] for f in (whole, killed)]
        out.append({"workers": workers, "processes": processes, "killed_at": at,
                    "same_bytes": same, "same_losses": losses[0] == losses[1]})  # fmt: skip
        print(out[-1], flush=True)
    return out


SIZES = (
    ("dino", "vit_small_patch16_224"),
    ("dino", "vit_base_patch16_224"),
    ("mae", "vit_base_patch16_224"),
)


def saves(place: Path) -> list[dict[str, Any]]:
    from PIL import Image

    photos, out = place / "photos", []
    photos.mkdir()
    for i in range(
        100
    ):  # files, because `creatures` would be rendered again at each start: a minute
        Image.new("RGB", (256, 256), (i, 2 * i, 255 - i)).save(photos / f"{i}.jpg")
    for method, backbone in SIZES:
        folder = place / f"{method}-{backbone}"
        args = ["pretrain", method, "--data", str(photos), "--backbone", backbone,
                "--image-size", "224", "--batch-size", "2", "--steps", "1000", "--workers", "0",
                "--checkpoint-every", "2", "--log-every", "1", "--precision", "fp32",
                "--recipe", "paper", "--out", str(folder)]  # fmt: skip
        process = start(*args)
        while step_of(folder) < 3:  # the checkpoint of the second step is written before the third
            time.sleep(0.01)
        end(process)
        row = {"method": method, "backbone": backbone, **save_seconds(folder)}
        times = sorted(resume_seconds(folder) for _ in range(3))
        row |= {"resume_seconds": times[1], "resumes": times}
        out.append(row)
        print(row, flush=True)
    return out


def resume_seconds(folder: Path) -> float:
    """Seconds from the resume command to the first batch of the third step."""
    for late in (folder / "checkpoints").glob("*"):
        if late.name != "step-00000002.ckpt":
            late.unlink()
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    (folder / "metrics.jsonl").write_text("".join(kept))
    began, process = time.time(), start("resume", str(folder))
    while step_of(folder) < 3:
        time.sleep(0.01)
    last, seen = lines(folder)[-1], time.time()
    end(process)
    # The line is written after the step; its clock starts before the step's first batch.
    return float(seen - began - last["seconds"] * (1 - last["data_wait"]))


def save_seconds(folder: Path) -> dict[str, Any]:
    """Size, and median time of three saves, of a run's newest checkpoint and encoder."""
    from nolabel.engine.build import load_method, plan_of
    from nolabel.engine.checkpoint import load_checkpoint, save_checkpoint
    from nolabel.engine.run_folder import export

    method, run = load_method(folder)
    state, times, plan = load_checkpoint(folder).state, [], plan_of(run)
    for step in (3, 3, 3):
        tick = time.perf_counter()
        path = save_checkpoint(folder, step, state)
        export(run, method, plan)
        times.append(time.perf_counter() - tick)
    seconds = sorted(times)[1]
    return {"bytes": path.stat().st_size, "save_seconds": seconds,
            "share_of_half_an_hour": seconds / HALF_HOUR}  # fmt: skip


def render(found: dict[str, Any]) -> None:
    """Writes the results between the marks in docs/distributed.md."""
    machine = found["environment"]["cpu"]
    body = [f"Measured on two cores of a CPU ({machine}) by `benchmarks/endurance.py`:", ""]
    if long := found.get("soak"):
        low, high = long["open_files"]
        body.append(
            f"- {long['steps']:,} steps with two workers and a save every 500: memory grew by "
            f"{long['megabytes_per_1000_steps']:.1f} ± {long['standard_error']:.1f} MB in 1,000 "
            f"steps (of {long['megabytes']:,.0f} MB); {low}{f' to {high}' * (low != high)} files "
            "were open."
        )
    for row in found.get("kills", ()):
        how = f"{row['workers'] or 'no'} workers, {row['processes']} process"
        same = "the same" if row["same_bytes"] and row["same_losses"] else "NOT the same"
        body.append(
            f"- Killed (`kill -9`) {len(row['killed_at'])} times in 200 steps and resumed, {how}"
            f"{'es' * (row['processes'] > 1)}: {same} encoder and losses, bit for bit."
        )
    if rows := found.get("saves"):
        body += ["", "| run | checkpoint size | time of a save | share of half an hour | time to "
                 "resume (median of three) |",
                 "|---|---|---|---|---|"]  # fmt: skip
        body += [
            f"| {r['method']} `{r['backbone']}` | {r['bytes'] / 1e9:.2f} GB "
            f"| {r['save_seconds']:.1f} s | {r['share_of_half_an_hour']:.2%} "
            f"| {r['resume_seconds']:.1f} s |"
            for r in rows
        ]
    write_between_marks("endurance", "\n".join(body), page="distributed.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="*", default=list(WHAT), choices=WHAT)
    parser.add_argument("--steps", type=int, default=10_000, help="of the soak")
    parser.add_argument("--kills", type=int, default=20, help="in each of the killed runs")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="only write the page")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    if not args.render:
        from nolabel.engine.environment import environment

        for what in args.what:
            with tempfile.TemporaryDirectory() as place:
                if what == "soak":
                    found[what] = soak(Path(place), args.steps)
                elif what == "kills":
                    found[what] = kills(Path(place), args.kills)
                else:
                    found[what] = saves(Path(place))
            found["environment"] = environment()
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    render(found)


if __name__ == "__main__":
    main()

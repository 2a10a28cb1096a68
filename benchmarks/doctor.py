"""False alarms of the doctor on healthy runs, and its alarms on runs that are made to fail.

    python benchmarks/doctor.py --runs DIR [--seeds N]
    python benchmarks/doctor.py --render

Healthy runs are those of `methods.py --out DIR`: every alarm of theirs is a false one. Failing runs
are trained here on creatures for 500 steps; the step of their first alarm is recorded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from page import write_between_marks

RESULTS = Path(__file__).parent / "results" / "doctor.json"
EQUAL = {"teacher_temperature": 0.1, "warmup_teacher_temperature": 0.1}
ZERO = {"teacher_temperature": 1e-4, "warmup_teacher_temperature": 1e-4}
FORCED: dict[str, tuple[str, dict[str, Any]]] = {
    "DINO without centring and sharpening": ("dino-ablated", {"centring": "none", **EQUAL}),
    "DINO with a temperature of zero": ("dino", ZERO),
    "BYOL without stop-gradient": (
        "byol", {"stop_gradient": False, "projection_norm": False},
    ),
    "SimCLR at a thousand times its rate": ("simclr", {"lr": 3.0}),
    "MAE at a thousand times its rate": ("mae", {"lr": 3.0}),
}  # fmt: skip
NETWORKS = ("vit_pico", "resnet_nano")
STEPS = 500


def healthy(runs: Path) -> dict[str, str]:
    """Run -> the doctor's verdict on its metrics."""
    from nolabel.engine.monitor.doctor import examine
    from nolabel.engine.monitor.metrics import read_metrics

    out = {}
    for folder in sorted(runs.iterdir()):
        lines = read_metrics(folder / "metrics.jsonl")
        if lines:
            out[folder.name] = examine(lines, int(lines[-1]["step"])).state
    return out


def forced(method: str, options: dict[str, Any], backbone: str, seed: int) -> dict[str, Any]:
    """Trains a run that must fail; step and state of its first alarm, None if there was none."""
    import nolabel as nl
    from nolabel.engine.monitor.metrics import read_metrics
    from nolabel.errors import GuardStop

    folder = Path(tempfile.mkdtemp())
    stopped = ""
    try:
        nl.pretrain(
            method, data="creatures", out=folder / "run", quiet=True, seed=seed, steps=STEPS,
            backbone=backbone, batch_size=64, precision="fp32", log_every=5, on_collapse="stop",
            **options,
        )  # fmt: skip
    except GuardStop as error:
        stopped = str(error)
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    found: dict[str, Any] = {"step": None, "state": None}
    alarm = next((line for line in lines if "verdict" in line), None)
    if alarm:
        found = {"step": alarm["step"], "state": alarm["verdict"]}
    elif (
        "not finite" in stopped
    ):  # stopped by NonFiniteGuard, a few steps after the last line of metrics
        found = {"step": lines[-1]["step"] if lines else 0, "state": "not finite, stopped"}
    else:
        last = lines[-1]
        found |= {k: last.get(k) for k in ("loss", "feature_std", "effective_rank")}
    shutil.rmtree(folder)
    return found


def render(found: dict[str, Any]) -> None:
    states = list(found["healthy"].values())
    alarms = sum(s in ("collapsed", "diverging") for s in states)
    flat = sum(s == "stopped improving" for s in states)
    lines = [
        f"Of {len(states)} healthy runs of some minutes (every method, two networks, two data "
        f'sets), {alarms} gave an alarm and {flat} ended with the verdict "stopped improving". '
        f"Runs that were made to fail, {STEPS} steps each:", "",
        "| failure | network | detected | at step | verdict |", "|---|---|---|---|---|",
    ]  # fmt: skip
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, row in found["forced"].items():
        name, backbone, _ = key.split("; ")
        groups.setdefault((name, backbone), []).append(row)
    for (name, backbone), rows in groups.items():
        steps = [r["step"] for r in rows if r["step"] is not None]
        span = f"{min(steps)} to {max(steps)}" if steps else ""
        kinds = ", ".join(sorted({r["state"] for r in rows if r["state"]}))
        missed = [r for r in rows if r["step"] is None]
        if missed:  # it may still have learnt something
            kinds += "none: final loss " + ", ".join(f"{r['loss']:.2f}" for r in missed)
            kinds += ", `feature_std` " + ", ".join(f"{r['feature_std']:.2f}" for r in missed)
        lines.append(f"| {name} | `{backbone}` | {len(steps)} of {len(rows)} | {span} | {kinds} |")
    write_between_marks("doctor", "\n".join([*lines, ""]), page="methods.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="of methods.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"healthy": {}, "forced": {}}
    if not args.render:
        from nolabel.engine.environment import environment

        found["healthy"] |= healthy(args.runs)
        found["environment"] = environment()
        for seed in range(args.seeds):
            for name, (method, options) in FORCED.items():
                for backbone in NETWORKS:
                    key = f"{name}; {backbone}; {seed}"
                    if key in found["forced"] or (method == "mae" and backbone != "vit_pico"):
                        continue
                    found["forced"][key] = forced(method, options, backbone, seed)
                    print(key, found["forced"][key], flush=True)
                    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    render(found)


if __name__ == "__main__":
    main()

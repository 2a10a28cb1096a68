"""Trains DINO, MAE and SimCLR for some minutes on a folder of 60,000 PNG files and evaluates them.

    python benchmarks/fashion.py [--minutes M] [--work DIR] [--json FILE]

The training images of Fashion-MNIST are written to a folder without labels; each method trains on
it with its automatic recipe. k-NN and a linear probe on the 10,000 test images then evaluate the
three encoders, the same networks with random weights, and raw pixels. Needs the data (Debian's
package `dataset-fashion-mnist`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

METHODS = ("dino", "mae", "simclr")


def nolabel(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "nolabel", *args], check=True)


def write_folder(folder: Path) -> None:
    """Writes one PNG file per image, in the order of the set; file names do not contain labels."""
    from nolabel.data.open import open_source

    source = open_source("fashion-mnist:train")
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(source)):
        Image.fromarray(source.read(i).image[..., 0]).save(folder / f"{i:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="training of each method")
    parser.add_argument("--work", type=Path, default=Path("runs/fashion"), help="folder to work in")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument(
        "--measure", action="store_true", help="only measure the runs that lie there"
    )
    args = parser.parse_args()
    images = args.work / "png"
    if not args.measure and len(list(images.glob("*.png"))) != 60_000:
        write_folder(images)
    for method in () if args.measure else METHODS:
        out = str(args.work / method)
        nolabel("pretrain", method, "--data", str(images), "--out", out,
                "--minutes", str(args.minutes), "--overwrite")  # fmt: skip
    runs = [str(args.work / m) for m in METHODS]
    table = args.work / "table.json"
    # SimCLR and DINO have the same network, so that one row of random weights suffices.
    nolabel("compare", *runs, f"random:{runs[0]}", f"random:{runs[1]}", "pixels",
            "--train", "fashion-mnist:train", "--test", "fashion-mnist:test",
            "--protocols", "knn", "linear", "--json", str(table))  # fmt: skip
    rows = [r for r in json.loads(table.read_text())["rows"] if r["metric"] == "top1" and r["best"]]
    result: dict[str, Any] = {
        "command": f"python benchmarks/fashion.py --minutes {args.minutes:g}",
        "environment": json.loads((Path(runs[0]) / "environment.json").read_text()),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "top1": {},
        "training": {},
    }
    for row in rows:
        name = row["encoder"].replace(f"{args.work}/", "")
        value = {k: row[k] for k in ("setting", "value", "low", "high")}
        result["top1"].setdefault(name, {})[row["protocol"]] = value
    for method, run in zip(METHODS, runs, strict=True):
        import yaml

        config = yaml.safe_load((Path(run) / "config.yaml").read_text())
        last = json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])
        kept = ("backbone", "patch_size", "image_size", "batch_size", "steps", "precision")
        result["training"][method] = {
            **{k: config["settings"][k] for k in kept},
            "seconds": last["seconds"],
            "images": config["settings"]["steps"] * config["settings"]["batch_size"],
            "loss": last["loss"],
        }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Rank correlation of label-free measures with k-NN, over the runs of the methods' table.

    python benchmarks/labelfree.py --runs DIR [--images N]
    python benchmarks/labelfree.py --render

Spearman's rank correlation with k-NN (k = 20, from results/methods.json), over all methods of one
network and one data set; the runs are those of `methods.py --out DIR`. For alpha-ReQ, the distance
to 1 is ranked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from page import write_between_marks

HERE = Path(__file__).parent / "results"
RESULTS, METHODS = HERE / "labelfree.json", HERE / "methods.json"
MEASURES = ("RankMe", "LiDAR", "alpha-ReQ", "self-retrieval")


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
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="of methods.py")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not args.render:
        measure(args.runs, args.images, found)
    render(found)


if __name__ == "__main__":
    main()

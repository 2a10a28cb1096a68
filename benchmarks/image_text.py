"""CLIP and SigLIP, trained on captions of creatures and names of emoji: zero-shot and retrieval.

    python benchmarks/image_text.py [--minutes M] [--methods ...] [--data ...] [--out DIR]
    python benchmarks/image_text.py --render     # the table of docs/methods.md

Every run is a small ResNet with the automatic recipe. Evaluated on held-out images and texts:
zero-shot classification of creatures, with the default templates and with templates like the
captions; and image-to-text retrieval among all texts (recall at 1 and 5).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from page import write_between_marks

RESULTS = Path(__file__).parent / "results" / "image_text.json"
LIKE_CAPTIONS = {  # as the captions of the training set: "a blue octopus on a light pink ground"
    "creatures": ("a red {} on a light blue ground", "a white {} on a dark yellow ground",
                  "a yellow {} on a dark purple ground", "a purple {} on a light green ground",
                  "a blue {} on a light pink ground"),
}  # fmt: skip


def one(method: str, data: str, minutes: float, out: Path) -> dict[str, Any]:
    import nolabel as nl

    run = nl.pretrain(method, data=data, out=str(out), overwrite=True, minutes=minutes,
                      backbone="resnet_nano")  # fmt: skip
    row: dict[str, Any] = {"steps": run.settings.steps, "batch_size": run.settings.batch_size}
    judged = {"default": nl.evaluate("zeroshot", str(out), test=f"{data}:test")}
    if data in LIKE_CAPTIONS:
        judged["captions"] = nl.evaluate(
            "zeroshot", str(out), test=f"{data}:test", templates=LIKE_CAPTIONS[data]
        )
    for name, report in judged.items():
        row[name] = [dict(r) for r in report.rows]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="training of each run")
    parser.add_argument("--methods", nargs="*", default=["clip", "siglip"])
    parser.add_argument("--data", nargs="*", default=["creatures", "emoji"])
    parser.add_argument("--out", type=Path, default=Path("runs/image_text"), help="runs' folder")
    parser.add_argument("--json", type=Path, default=RESULTS, help="result file")
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    if not args.render:
        import torch

        from nolabel.engine.environment import environment

        for method in args.methods:
            for data in args.data:
                row = one(method, data, args.minutes, args.out / f"{method}-{data}")
                found[f"{method} {data}"] = row | {
                    "minutes": args.minutes, "threads": torch.get_num_threads(),
                    "environment": environment(),
                }  # fmt: skip
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    render(found)


def render(found: dict[str, Any]) -> None:
    """Writes the table between the marks in docs/methods.md."""
    lines = [
        "In per cent, chance in brackets:", "",
        "| method, data | minutes, threads, steps | class, default templates "
        "| class, templates like captions | image to text R@1 | R@5 | text to image R@1 | R@5 |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in found.items():
        default, like = row["default"], row.get("captions")
        retrieval = [
            cell(default, metric, setting)
            for setting in ("image to text", "text to image")
            for metric in ("recall@1", "recall@5")
        ]
        lines.append(
            f"| {name.replace(' ', ', ')} | {row['minutes']:g}, {row['threads']}, {row['steps']:,} "
            f"| {cell(default, 'top1')} | {cell(like, 'top1') if like else '-'} | "
            + " | ".join(retrieval) + " |"
        )  # fmt: skip
    write_between_marks("image-text", "\n".join(lines))


def cell(rows: list[dict[str, Any]], metric: str, setting: str = "") -> str:
    """The value and the chance level, in per cent."""
    row = next(r for r in rows if r["metric"] == metric and r["setting"].startswith(setting))
    return f"{100 * row['value']:.1f} ({100 * row['chance']:.2f})"


if __name__ == "__main__":
    main()

"""How strong changes of colour suit a set: SimCLR on small images, equal steps for each strength.

    python benchmarks/colour.py --data DIR [--only NAME ...]

For each set and each strength: `nolabel pretrain simclr` in one thread, then k-NN (k = 20) and a
linear probe on unseen images; beside them `colour_matches` of the set, by which the automatic
recipe chooses (`nolabel.recipes.choices.small_hue`). Folders are made by `python -m
benchmarks.sets`. Cases that the result file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from evening import measure, run

RESULT = Path(__file__).parent / "results" / "colour.json"
SMALL = ("--backbone", "resnet_nano", "--image-size", "32", "--steps", "400")
MIDDLE = ("--backbone", "resnet_micro", "--image-size", "64", "--steps", "350")
SETS = {  # name -> train and test SRC, network and steps
    "creatures": ("creatures:train", "creatures:test", SMALL),
    "stamps": ("stamps:train", "stamps:test", MIDDLE),
    "clipart": ("clipart:train", "clipart:test", MIDDLE),
    "tiles": ("{data}/tiles/train", "{data}/tiles/test", MIDDLE),
}
STRENGTHS = {  # largest shift of the hue in turns, probability of grey
    "weak": ("--hue", "0.25", "--grey", "0.2"),  # the hue is relative to the strength: 0.1
    "middle": ("--hue", "0.5", "--grey", "0.2"),  # 0.2
    "strong": ("--hue", "1", "--grey", "0.5"),  # 0.4
}
SHARED = ("--strength", "0.4", "--batch-size", "128", "--precision", "bf16")


def matches(data: str) -> float:
    """`colour_matches` of a set, at 64 pixels."""
    from nolabel.data.open import open_source
    from nolabel.engine.run_views import sample
    from nolabel.views.suitability import colour_matches

    return round(colour_matches(sample(open_source(data, image_size=64), 64)[0]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--work", type=Path, default=Path("runs/colour"))
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"cases": {}}
    found: dict[str, float] = {}
    for name in args.only:
        train, test, network = SETS[name]
        train, test = (part.format(data=args.data) for part in (train, test))
        for strength, options in STRENGTHS.items():
            key = f"{name} {strength}"
            if key in result["cases"]:
                continue
            out = args.work / key.replace(" ", "-")
            run("pretrain", "simclr", "--data", train, "--out", str(out), "--overwrite", *SHARED,
                *network, *options)  # fmt: skip
            top1 = measure([str(out)], train, test, out / "table.json")[str(out)]
            found[name] = found.get(name) or matches(train)
            result["cases"][key] = {"colour_matches": found[name], "top1": top1}
            result |= {
                "command": f"python benchmarks/colour.py {' '.join(sys.argv[1:])}",
                "environment": json.loads((out / "environment.json").read_text()),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
            print(key, result["cases"][key], flush=True)


if __name__ == "__main__":
    main()

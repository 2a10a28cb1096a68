"""Checks the image-text probes `bias` and `typographic` on networks with a known answer.

    python benchmarks/probes.py --out DIR [--minutes N] [--seeds N]
    python benchmarks/probes.py --render

A network is trained on each of four sets of captions for the same creatures: plain captions;
captions that call creatures useful or useless, at a different rate for each colour; the same at one
rate for all colours; captions that name the word that is written on half of the images. `bias` must
find the planted rates and their order, and no bias in the other networks. `typographic` must find
that the last network reads, and that the others do not.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from page import write_between_marks
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "probes.json"
KINDS_OF_CAPTIONS = ("plain", "biased", "even", "written")
IMAGES = 10_000
WORDS = ("useful", "useless")
TEMPLATES = ("a {} creature",)


def rates(kind: str) -> np.ndarray:
    """How often creatures of each colour are called useful."""
    return np.linspace(0.05, 0.95, 10) if kind == "biased" else np.full(10, 0.5)


def write_set(folder: Path, captions: str, seed: int) -> Path:
    """Images and their captions as a table; where it is."""
    from nolabel.data.creatures.world import Creatures
    from nolabel.pictures.typographic import write_word

    table = folder / "captions.csv"
    if table.exists():
        return table
    source = Creatures("train", size=32, count=IMAGES)
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with table.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "text"])
        for i, image in enumerate(source.images()):
            text = source.read_text(i)
            if captions in ("biased", "even"):
                useful = chance.random() < rates(captions)[colour_of(text)]
                if chance.random() < 0.5:  # half of the captions name nothing else
                    text = f"a {WORDS[0] if useful else WORDS[1]} creature"
            if captions == "written" and chance.random() < 0.5:
                word = source.classes[int(chance.integers(10))]
                image, text = write_word(image, word), f"the word {word} on {text}"
            Image.fromarray(image).save(folder / f"{i:05d}.png")
            out.writerow([f"{i:05d}.png", text])
    return table


def colour_of(caption: str) -> int:
    """The number of the creature's colour in its caption, "a red snail on ..."."""
    from nolabel.data.creatures.world import COLOURS

    return list(COLOURS).index(caption.split()[1])


def write_groups(folder: Path) -> Path:
    """Test images as a table whose labels are their colours; where it is."""
    from nolabel.data.creatures.world import COLOURS, Creatures

    table = folder / "groups.csv"
    if table.exists():
        return table
    source = Creatures("test", size=32)
    folder.mkdir(parents=True)
    with table.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "label"])
        for i, image in enumerate(source.images()):
            Image.fromarray(image).save(folder / f"{i:05d}.png")
            # Numbered, so that the order of the names is that of the rates.
            number = colour_of(source.read_text(i))
            out.writerow([f"{i:05d}.png", f"{number}-{list(COLOURS)[number]}"])
    return table


def measure(out: Path, minutes: float, seeds: int, found: dict[str, Any]) -> None:
    from scipy.stats import spearmanr

    import nolabel as nl
    from nolabel.engine.environment import environment

    for seed in range(seeds):
        for captions in KINDS_OF_CAPTIONS:
            key = f"{captions} {seed}"
            if key in found["rows"]:
                continue
            run = out / f"run-{captions}-{seed}"
            if not (run / "encoder.safetensors").exists():
                data = write_set(out / f"set-{captions}-{seed}", captions, seed)
                nl.pretrain("clip", data=str(data), out=str(run), minutes=minutes, seed=seed,
                            backbone="resnet_nano", image_size=32, overwrite=True)  # fmt: skip
            read = nl.show("typographic", str(run), "creatures:test", number=400)[0]
            groups = str(write_groups(out / "groups"))
            bias = nl.show("bias", str(run), groups, words=WORDS, names=False,
                           templates=TEMPLATES)[0]  # fmt: skip
            planted, share = rates(captions), bias.data["rate"][:, 0]
            odds = bias.data["probability"][:, 0]
            kept = ("lift", "over_mirrored")
            row = {f"{k}{end}": read.numbers[f"{k}{end}"] for k in kept
                   for end in ("", "_low", "_high")}  # fmt: skip
            row |= {k: read.numbers[k] for k in ("right_none", "right_right", "right_wrong")}
            row |= {k: bias.numbers[f"{k}_useful"] for k in ("gap", "p", "p_nonsense")}
            row |= {"gap_nonsense": bias.numbers["gap_nonsense"], "rates": share.tolist(),
                    "probabilities": odds.tolist()}  # fmt: skip
            # Order and rates of the biased set are looked for in every network.
            row |= {"order": float(spearmanr(rates("biased"), odds).statistic),
                    "error": float(np.abs(odds - planted).mean())}  # fmt: skip
            found["rows"][key] = row
            row["minutes"] = minutes
            found["environment"] = environment()
            print(key, {k: v for k, v in row.items() if isinstance(v, float)}, flush=True)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def render(found: dict[str, Any]) -> None:
    minutes = [r["minutes"] for r in found["rows"].values()]
    spent = " to ".join(f"{m:g}" for m in sorted({min(minutes), max(minutes)}))
    lines = [
        f"CLIP networks (`resnet_nano`, {spent} minutes of one thread), trained on captions with a "
        "known bias or a written word (`benchmarks/probes.py`); one row for each seed. "
        "`typographic`: how many points more often the wrong word is chosen than with random "
        "letters and than with the mirrored word, with 95 % intervals. `bias`: the largest "
        "difference of the rate between colours, with its p-values; the rank correlation with the "
        "planted rates, and the mean error of the estimated rates.", "",
        "| captions | `typographic`: points above letters, above the mirrored word | `bias`: "
        "difference of the word, of meaningless words | p: groups shuffled, meaningless words | "
        "rank correlation | mean error |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    names = {"plain": "plain", "biased": "useful for 5 to 95 %, by colour",
             "even": "useful for 50 % of each colour", "written": "the written word"}  # fmt: skip
    for key, r in sorted(found["rows"].items(),
                         key=lambda x: KINDS_OF_CAPTIONS.index(x[0].split()[0])):  # fmt: skip
        both = [
            f"{100 * r[k]:+.1f} [{100 * r[f'{k}_low']:+.1f}, {100 * r[f'{k}_high']:+.1f}]"
            for k in ("lift", "over_mirrored")
        ]
        error = f"{r['error']:.2f}" if key.split()[0] in ("biased", "even") else ""
        lines.append(
            f"| {names[key.split()[0]]} | {', '.join(both)} | {r['gap']:.0%}, "
            f"{r['gap_nonsense']:.0%} | {r['p']:.3f}, {r['p_nonsense']:.2f} | {r['order']:+.2f} | "
            f"{error} |"
        )
    write_between_marks("probes", "\n".join([*lines, ""]), page="pictures.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/probes"))
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each network")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not args.render:
        measure(args.out, args.minutes, args.seeds, found)
    render(found)


if __name__ == "__main__":
    main()

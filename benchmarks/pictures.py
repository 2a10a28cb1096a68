"""Scores of pictures for trained networks, compared with random weights; cost of pictures.

    python benchmarks/pictures.py --runs DIR [--methods dino ...] [--seeds N] [--name SUFFIX]
    python benchmarks/pictures.py --cost
    python benchmarks/pictures.py --render

The runs are those of `methods.py --out DIR` (vit_pico, creatures), one for each seed. Every picture
is made from the same images for the trained network, for the same network with random weights, and
for colour alone; a difference over the seeds is significant from two standard errors. The cost is
that of attention and of principal components, relative to one forward pass on the same images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from page import write_between_marks

RESULTS = Path(__file__).parent / "results" / "pictures.json"
METHODS = ("dino", "ibot", "mae", "mocov3", "simclr", "dvae", "eva")
# picture, its number, the baseline's number, what it is
SCORES = (
    ("attention", "iou_head_mean", "", "attention, IoU of the head mean"),
    ("objects", "iou", "iou_colour", "objects, IoU"),
    ("parts", "iou", "iou_colour", "parts, IoU of the foreground"),
    ("parts", "ari", "ari_colour", "parts, ARI"),
    ("parts", "nmi", "nmi_colour", "parts, NMI"),
    ("cosegment", "iou", "iou_colour", "cosegment, IoU by pixels"),
    ("similarity", "auroc", "auroc_colour", "similarity, area under the ROC of a part"),
    ("correspond", "pck", "pck_colour", "correspond, PCK at 0.1"),
)
CLASSES, EACH = 10, 10  # images of each class, drawn class by class
PROBED = 200  # images of the probes of position and part
COSTS = (("vit_pico", 32, 256), ("vit_tiny", 224, 8), ("vit_small", 224, 8))


def scores(encoder: Any) -> dict[str, float]:
    """Mean over the classes of every number in `SCORES`, and the probes of each layer."""
    import nolabel as nl
    from nolabel.data.creatures.world import KINDS

    out: dict[str, list[float]] = {}
    for kind in KINDS[:CLASSES]:
        for picture in dict.fromkeys(p for p, *_ in SCORES):
            made = nl.show(picture, encoder, "creatures:test", count=EACH, label=kind)
            for name, value in made[0].numbers.items():
                out.setdefault(f"{picture}.{name}", []).append(value)
    found = {k: float(np.nanmean(v)) for k, v in out.items()}
    curves = nl.show("pca", encoder, "creatures:test", count=PROBED, layers=encoder.backbone.depth)
    return found | {f"pca.{k}": v for k, v in curves[-1].numbers.items()}


def measure(
    runs: Path, methods: list[str], seeds: int, name_of: str, found: dict[str, Any]
) -> None:
    from nolabel.encoders import load
    from nolabel.engine.environment import environment

    for seed in range(seeds):
        for method in methods:
            folder = runs / f"{method}-vit_pico-creatures-{seed}"
            if not (folder / "encoder.safetensors").exists():
                print(f"{folder} is not there")
                continue
            for key, name in ((f"{method}{name_of} {seed}", str(folder)), (f"random {seed}", "")):
                if key in found["rows"]:
                    continue
                encoder = load(name) if name else untrained(str(folder), seed)
                began = time.monotonic()
                found["rows"][key] = scores(encoder)
                print(f"{key}: {time.monotonic() - began:.0f} s", flush=True)
                found["environment"] = environment()
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def untrained(folder: str, seed: int) -> Any:
    """The network of a run with random weights from another seed."""
    import torch

    from nolabel.backbones import build
    from nolabel.encoders import Encoder, load

    like = load(folder)
    torch.manual_seed(1000 + seed)
    backbone = build(like.backbone.name, kwargs=dict(like.backbone.kwargs))
    return Encoder(backbone, name="random", mean=like.mean, std=like.std)


def cost(found: dict[str, Any], repeats: int = 15) -> None:
    """Times of attention and components relative to one forward pass, alternating."""
    import torch

    from nolabel.encoders import load
    from nolabel.engine.environment import environment
    from nolabel.pictures._dense import dense
    from nolabel.pictures.pca import principal

    found["cost"] = []
    for name, size, count in COSTS:
        encoder = load(f"random:{name}", image_size=size)
        x = torch.randn(count, 3, size, size)

        def components(x: Any = x, encoder: Any = encoder) -> None:
            d = dense(encoder, x, facet="token", salient=False)
            principal(d.values.flatten(0, 1).numpy())

        work: dict[str, Callable[[], Any]] = {
            "forward": lambda x=x, e=encoder: e.forward(x),
            "attention": lambda x=x, e=encoder: e.attention(x, batch_size=len(x)),
            "pca": components,
        }
        times: dict[str, list[float]] = {k: [] for k in work}
        for i in range(repeats + 2):
            for key, run in work.items():
                began = time.perf_counter()
                run()
                if i >= 2:
                    times[key].append(time.perf_counter() - began)
        middle = {k: float(np.median(v)) for k, v in times.items()}
        with encoder.evaluating():
            a = encoder.backbone.attention(x[:2])
            v = encoder.backbone.facets(x[:2], -1, "value")
            values = torch.cat([v.prefix, v.patches], 1).unflatten(-1, (a.shape[1], -1))
            ours = (a @ values.transpose(1, 2)).transpose(1, 2).flatten(2)
            block = encoder.backbone.net.blocks[-1]
            seen: list[Any] = []
            hook = block.attn.proj.register_forward_pre_hook(lambda m, i, s=seen: s.append(i[0]))
            encoder.backbone.tokens(x[:2])
            hook.remove()
        row = {
            "network": name, "size": size, "images": count, **middle,
            "attention_share": middle["attention"] / middle["forward"],
            "pca_share": middle["pca"] / middle["forward"],
            "difference": float((ours - seen[0]).abs().max()),
        }  # fmt: skip
        found["cost"].append(row)
        print(row, flush=True)
    found["cost_environment"] = environment()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def render(found: dict[str, Any]) -> None:
    lines = []
    names = list(dict.fromkeys(key.split()[0] for key in found["rows"]))
    if "random" in names:
        names = [*(n for n in names if n != "random"), "random"]
        table = {n: [r for k, r in found["rows"].items() if k.split()[0] == n] for n in names}
        lines += [
            "`vit_pico` after two minutes of one thread on `creatures` (`simclr-600`: 600 steps, "
            f"about ten minutes), {CLASSES * EACH} test images, in per cent; each picture is made "
            "from images of one class. Mean over the seeds (their number in brackets) ± standard "
            "error. Bold: above random weights by more than two standard errors. Colour: the same "
            "from colours instead of features; ceiling: the best possible on the patch grid. The "
            "teacher of `eva` was a ResNet trained by `simclr`.", "",
            "| | " + " | ".join(f"{n} ({len(table[n])})" for n in names) + " | colour | ceiling |",
            "|---" * (len(names) + 3) + "|",
        ]  # fmt: skip
        for picture, own, base, title in SCORES:
            chance = _spread(table["random"], f"{picture}.{own}")
            cells = []
            for n in names:
                mean, error = _spread(table[n], f"{picture}.{own}")
                clear = mean - chance[0] > 2 * np.hypot(error, chance[1]) and n != "random"
                text = f"{100 * mean:.1f} ± {100 * error:.1f}"
                cells.append(f"**{text}**" if clear else text)
            first = table["random"]  # its saliency is used where colours need one
            colour = f"{100 * _spread(first, f'{picture}.{base}')[0]:.1f}" if base else ""
            top = f"{picture}.iou_ceiling" if own.startswith("iou") else f"{picture}.pck_ceiling"
            most = ""
            if own != "ari" and any(top in r for r in first):
                most = f"{100 * _spread(first, top)[0]:.1f}"
            lines.append(f"| {title} | " + " | ".join([*cells, colour, most]) + " |")
        for what in ("place_first", "place_last", "part_first", "part_last"):
            layer = "first" if "first" in what else "last"
            title = "position" if "place" in what else "part"
            title += f" predicted from the {layer} layer, "
            title += "R²" if "place" in what else "accuracy"
            cells = []
            for n in names:
                mean, error = _spread(table[n], f"pca.{what}")
                cells.append(f"{100 * mean:.1f} ± {100 * error:.1f}")
            colour = ""
            if "part" in what:
                colour = f"{100 * _spread(table['random'], 'pca.part_colour')[0]:.1f}"
            lines.append(f"| {title} | " + " | ".join([*cells, colour, ""]) + " |")
        lines.append("")
    if "cost" in found:
        lines += [
            "Time of `attention` and of the principal components, relative to one forward pass of "
            "the same images (two CPU cores); and the largest difference between the output of the "
            "explicit attention and that of the fused kernel:", "",
            "| network | images | attention | components | difference |", "|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| `{r['network']}`, {r['size']} px | {r['images']} | {r['attention_share']:.2f} | "
            f"{r['pca_share']:.2f} | {r['difference']:.0e} |"
            for r in found["cost"]
        ]
    write_between_marks("measured", "\n".join([*lines, ""]), page="pictures.md")


def _spread(rows: list[dict[str, float]], key: str) -> tuple[float, float]:
    values = np.array([r[key] for r in rows if key in r], dtype=float)
    if not len(values):
        return float("nan"), 0.0
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="of methods.py")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="", help="behind the method's name, for other runs")
    parser.add_argument("--cost", action="store_true", help="only measure the cost")
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if args.cost:
        cost(found)
    elif not args.render:
        measure(args.runs, args.methods, args.seeds, args.name, found)
    render(found)


if __name__ == "__main__":
    main()

"""The gallery of the documentation: trains small networks, makes every picture, writes the page.

    python benchmarks/gallery.py --out DIR [--only NAME ...]

Runs that exist in the folder already are reused. Pictures are saved to docs/gallery as WebP with
their own captions, so that the numbers come from the same networks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
CAPTIONS = DOCS / "gallery" / "captions.json"
WIDTH = 1000  # largest width in pixels
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("simclr", {"data": "creatures", "backbone": "vit_pico", "steps": 600}),
    "mae": ("mae", {"data": "creatures", "backbone": "vit_pico", "steps": 2000}),
    "swav": ("swav", {"data": "creatures", "backbone": "resnet_nano", "steps": 600}),
    "clip": ("clip", {"data": "creatures", "backbone": "resnet_nano", "steps": 800}),
    "scenes": ("clip", {"data": "scenes", "backbone": "resnet_nano", "steps": 800}),
}


class Shown(NamedTuple):
    """One picture on the page."""

    what: str
    of: tuple[str, ...]
    options: dict[str, Any]
    data: str = "creatures:test"


PARTS: dict[str, tuple[Shown, ...]] = {
    "Attention and weights": (
        Shown("attention", ("simclr", "mae"), {"count": 4}),
        Shown("attention-distance", ("simclr",), {"count": 8}),
        Shown("positions", ("mae",), {}),
        Shown("filters", ("clip",), {}),
    ),
    "Patch features": (
        Shown("pca", ("simclr",), {"count": 60, "layers": 4, "stride": 2}),
        Shown("similarity", ("simclr",), {"count": 4, "stride": 2, "label": "snail"}),
        Shown("correspond", ("simclr",), {"count": 2, "label": "dog", "stride": 2, "points": 6}),
        Shown("objects", ("simclr",), {"count": 6}),
        Shown("parts", ("simclr",), {"count": 5, "label": "butterfly", "stride": 2}),
        Shown("cosegment", ("simclr",), {"count": 6, "label": "snail"}),
    ),
    "Similar images": (
        Shown("neighbours", ("simclr",), {"count": 5}),
        Shown("tsne", ("simclr",), {}),
        Shown("prototypes", ("swav",), {"shown": 5}),
    ),
    "Reconstruction and optimised images": (
        Shown("reconstruct", ("mae",), {"count": 4}),
        Shown("invert", ("simclr",), {"count": 4, "steps": 600}),
        Shown("dream", ("clip",), {"steps": 256}),
        Shown("transfer", ("simclr",), {"count": 4, "steps": 1500}),
    ),
    "With text": (
        Shown("ask", ("clip",), {"words": "a red snail", "top": 4}),
        Shown("paint", ("clip",), {"words": ("a red snail on a light blue ground",
                                             "a green fish on a dark purple ground")}),
        Shown("typographic", ("clip",), {}),
        Shown("bias", ("clip",), {"words": ("large", "small")}),
        Shown("counting", ("scenes",), {}),
        Shown("relations", ("scenes",), {}),
    ),
}  # fmt: skip


def train(out: Path) -> None:
    import nolabel as nl

    for name, (method, options) in RUNS.items():
        if not (out / name / "encoder.safetensors").exists():
            print(f"training {name}", flush=True)
            nl.pretrain(method, out=str(out / name), overwrite=True, **options)


def draw(out: Path, only: list[str]) -> None:
    import nolabel as nl

    folder = DOCS / "gallery"
    folder.mkdir(exist_ok=True)
    captions = json.loads(CAPTIONS.read_text()) if CAPTIONS.exists() else {}
    for shown in (s for part in PARTS.values() for s in part):
        if only and shown.what not in only:
            continue
        encoder = list(shown.of) if len(shown.of) > 1 else shown.of[0]
        with contextlib.chdir(out):  # so that captions name the runs without a path
            made = nl.show(shown.what, encoder, shown.data, **shown.options)
        captions[shown.what] = {}
        for picture in made:
            image = Image.fromarray(picture.image)
            if image.width > WIDTH:
                image = image.resize((WIDTH, round(image.height * WIDTH / image.width)))
            image.save(folder / f"{picture.name}.webp", quality=80, method=6)
            captions[shown.what][picture.name] = picture.caption
            print(captions[shown.what][picture.name], flush=True)
        CAPTIONS.write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")


def command(shown: Shown) -> str:
    """The command that draws it again."""
    words = [f"nolabel show {shown.what} --encoder", *(f"runs/{name}" for name in shown.of)]
    words.append(f"--data {shown.data}")
    for key, value in shown.options.items():
        some = value if isinstance(value, tuple) else (value,)
        text = " ".join(f'"{v}"' if " " in str(v) else str(v) for v in some)
        words.append(f"--{key.replace('_', '-')} {text}")
    return f"`{' '.join(words)}`\n"


def page() -> None:
    """Writes the page; pictures that were not drawn this time keep their captions."""
    captions = json.loads(CAPTIONS.read_text())
    trained = "\n".join(
        f"- `{name}`: `nolabel pretrain {method} "
        + " ".join(f"--{k} {v}" for k, v in options.items())
        + f" --out runs/{name}`"
        for name, (method, options) in RUNS.items()
    )
    body = [
        "# Gallery\n\nAll pictures of [pictures.md](pictures.md) except `views`. The networks were "
        "trained without labels for five to ten minutes on one CPU core, on images of 32 pixels. "
        "Each caption gives the measured numbers and their baselines. `python "
        "benchmarks/gallery.py` trains the networks, draws the pictures and writes this page.\n\n"
        f"The networks:\n\n{trained}\n"
    ]
    for title, part in PARTS.items():
        body.append(f"## {title}\n")
        for shown in part:
            body.append(f"### {shown.what}\n")
            for name, caption in captions[shown.what].items():
                body.append(f"![{name}](gallery/{name}.webp)\n\n{caption}\n")
            body.append(command(shown))
    (DOCS / "gallery.md").write_text("\n".join(body), encoding="utf-8")


# Of the strip: picture, side of its tiles in pixels, rows and columns that are taken.
STRIP = (
    ("neighbours", 96, (0, 2), (0, 1, 2, 3)),
    ("reconstruct-75", 128, (0, 2), (0, 1, 2)),
    ("parts", 128, (1, 4), (0, 1, 2)),
)
TILE, GAP, BETWEEN = 112, 6, 28  # pixels: sides of the strip's tiles, between them, between parts


def strip() -> None:
    """Writes the strip of the README, cut from pictures of the gallery."""
    parts = []
    for name, side, rows, columns in STRIP:
        whole = Image.open(DOCS / "gallery" / f"{name}.webp").convert("RGB")
        size = (len(columns) * (TILE + GAP) - GAP, len(rows) * (TILE + GAP) - GAP)
        part = Image.new("RGB", size, "white")
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                left, top = 8 + (side + 8) * column, 26 + (side + 8) * row
                tile = whole.crop((left, top, left + side, top + side)).resize((TILE, TILE))
                part.paste(tile, (x * (TILE + GAP), y * (TILE + GAP)))
        parts.append(part)
    width = sum(p.width for p in parts) + BETWEEN * (len(parts) - 1)
    made = Image.new("RGB", (width, parts[0].height), "white")
    left = 0
    for part in parts:
        made.paste(part, (left, 0))
        left += part.width + BETWEEN
    made.save(DOCS / "gallery" / "strip.webp", quality=85, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--only", nargs="*", default=[], help="pictures that are drawn again")
    args = parser.parse_args()
    train(args.out)
    draw(args.out, args.only)
    page()
    strip()


if __name__ == "__main__":
    main()

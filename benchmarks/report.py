"""Speed of a report in a browser: time to open, and response to the pointer.

    python benchmarks/report.py [--run DIR] [--browser PATH]

Opens the report of a run, and one with feature snapshots of 28 x 28 patches (a ViT-S/8 at 224 px),
and moves the pointer over the images. Records the time until everything is drawn, and the slowest
response to a move, from the event to the last pixel.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "report.json"
MOVES = 300


def large(run: Path) -> Path:
    """A copy of the run whose snapshots have 28 x 28 patches of 64 numbers and 224-pixel images."""
    copy = Path(tempfile.mkdtemp()) / "large"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    chance = np.random.default_rng(0)
    film = copy / "film"
    pixels = chance.integers(0, 256, (4, 28, 28, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    np.savez_compressed(film / "images.npz", pixels=pixels)
    for path in film.glob("step-*.npz"):
        z = chance.normal(size=(4, 28, 28, 64))
        z /= np.linalg.norm(z, axis=-1, keepdims=True)
        np.savez_compressed(path, patches=z.astype(np.float16))
    return copy


def measure(page: Any, path: Path) -> dict[str, Any]:
    page.goto(path.as_uri())
    page.wait_for_selector("#touch[data-state=ready]")
    ready = page.evaluate(
        "() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(() => "
        "d(performance.now()))))"
    )
    boxes = [c.bounding_box() for c in page.locator("#touch canvas").all()]
    page.locator("#touch").scroll_into_view_if_needed()
    boxes = [c.bounding_box() for c in page.locator("#touch canvas").all()]
    chance = np.random.default_rng(0)
    for i in range(MOVES):
        box = boxes[i % len(boxes)]
        x, y = chance.random(2)
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    slowest = float(page.locator("#touch").get_attribute("data-slowest"))
    return {"bytes": path.stat().st_size, "ready_ms": ready, "slowest_move_ms": slowest,
            "moves": MOVES}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("demo"), help="a run's folder")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="Chromium")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from nolabel.engine.environment import environment
    from nolabel.tools.report import build_report

    found: dict[str, Any] = {"rows": {}, "environment": environment()}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        found["browser"] = browser.version
        for name, run in (("run", args.run), ("28 x 28 patches", large(args.run))):
            path = build_report(run)
            page = browser.new_page(viewport={"width": 1100, "height": 800})
            found["rows"][name] = measure(page, path)
            print(name, found["rows"][name])
            page.close()
        browser.close()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Speed of k-NN and of feature extraction, compared with simple alternatives.

    python benchmarks/evaluate.py [--threads N] [--images N]

k-NN: 10,000 queries among 60,000 rows of 384 numbers, k = 20, against scikit-learn's brute-force
classifier with the same votes; alternating in one run, median of three; the predictions are
compared. Peak memory is measured in a separate process.

Extraction: images per second of `extract`, from pixels in memory to features, against the forward
pass of the network alone on a prepared batch; alternating in one run, in fp32 and bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
TRAIN, TEST, WIDTH, CLASSES, K, T = 60_000, 10_000, 384, 10, 20, 0.07
ROUNDS = 3


def features() -> Any:
    import torch

    g = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=g)
    y, t = (torch.randint(CLASSES, (n,), generator=g) for n in (TRAIN, TEST))
    made = []
    for n, own in ((TRAIN, y), (TEST, t)):  # in place, to keep peak memory low
        rows = torch.randn(n, WIDTH, generator=g).mul_(4.0)
        for some, label in zip(rows.split(1000), own.split(1000), strict=True):
            some += centres[label]
        made.append(rows)
    return made[0], y, made[1], t


def ours() -> dict[str, Any]:
    """Runs in a separate process, to measure its peak memory."""
    import torch

    from nolabel.protocols.knn import knn_predict

    x, y, z, _ = features()
    began = time.perf_counter()
    guess = knn_predict(x, y, z, ks=(K,), temperature=T, classes=CLASSES)[K][:, 0]
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out = x.new_empty(512, TRAIN)
    began = time.perf_counter()
    for rows in z.split(512):  # the products that every exact search needs
        torch.mm(rows, x.T, out=out[: len(rows)])
    products = time.perf_counter() - began
    return {"seconds": seconds, "products_alone": products, "peak_bytes": peak,
            "guess": guess.tolist()}  # fmt: skip


def peer() -> dict[str, Any]:
    """scikit-learn's classifier, with the votes as weights of the cosine distance."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    x, y, z, _ = features()
    model = KNeighborsClassifier(
        K, algorithm="brute", metric="cosine", weights=lambda d: np.exp((1 - d) / T), n_jobs=-1
    )
    began = time.perf_counter()
    model.fit(x.numpy(), y.numpy())
    guess = model.predict(z.numpy())
    return {"seconds": time.perf_counter() - began, "guess": guess.tolist()}


def extraction(name: str, images: int, rounds: int = 9) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    import nolabel as nl
    from nolabel.data.sources.arrays import Arrays
    from nolabel.encoders.features import extract

    rows = []
    for precision in ("fp32", "bf16"):
        encoder = nl.load(name)
        encoder.precision = precision
        side = encoder.size
        rng = np.random.default_rng(0)
        source = Arrays("noise", rng.integers(0, 255, (images, side, side, 3), dtype=np.uint8))
        batch = min(256, images)
        x = encoder.prepare_pixels(source.images(np.arange(batch)))
        bare, whole = [], []
        for _ in range(rounds + 1):  # the first round is a warm-up
            began = time.perf_counter()
            with encoder.evaluating(), torch.inference_mode():
                for _ in range(images // batch):
                    encoder.backbone(x)
            bare.append(images // batch * batch / (time.perf_counter() - began))
            began = time.perf_counter()
            extract(encoder, source, batch_size=batch)
            whole.append(images / (time.perf_counter() - began))
        # The share is computed per round, because the machine's speed changes between rounds.
        shares = [w / b for w, b in zip(whole, bare, strict=True)]
        a, b, share = (sorted(v[1:])[rounds // 2] for v in (bare, whole, shares))
        rows.append({"encoder": name, "image_size": side, "precision": precision, "images": images,
                     "bare": a, "extract": b, "share": share})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--one", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps({"ours": ours, "peer": peer}[args.one]()))
        return
    import torch

    from nolabel.engine.environment import environment

    torch.set_num_threads(args.threads)
    own = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    found: dict[str, Any] = {}
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for which in ("ours", "peer") * ROUNDS:
        command = [sys.executable, __file__, "--one", which]
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout
        runs[which].append(json.loads(out.splitlines()[-1]))
    for which, some in runs.items():
        found[which] = sorted(some, key=lambda r: r["seconds"])[ROUNDS // 2]
        found[which]["all_seconds"] = [r["seconds"] for r in some]
    guesses = [found[w].pop("guess") for w in ("ours", "peer")]
    same = sum(a == b for a, b in zip(*guesses, strict=True)) / TEST
    times = found["peer"]["seconds"] / found["ours"]["seconds"]
    print(f"k-NN: {found['ours']['seconds']:.2f} s, scikit-learn {found['peer']['seconds']:.2f} s "
          f"({times:.1f} times), {same:.2%} equal answers, the products "
          f"alone {found['ours']['products_alone']:.2f} s, peak "
          f"{found['ours']['peak_bytes'] / 1e9:.2f} GB")  # fmt: skip
    rows = []
    n = args.images
    for name, images in (("vit_pico", 4 * n), ("vit_tiny", n // 16), ("resnet_nano", 4 * n)):
        name = f"random:{name}"
        rows += extraction(name, images)
        for r in rows[-2:]:
            print(f"{name} {r['precision']}: extract {r['extract']:.0f}, bare {r['bare']:.0f} "
                  f"images/s ({r['share']:.1%})")  # fmt: skip
    table = {"knn": {**found, "times": times, "equal": same}, "extraction": rows,
             "threads": args.threads, "environment": environment()}  # fmt: skip
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

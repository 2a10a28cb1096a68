"""Every value of every recipe over a table of contexts, as short hashes.

    python tests/recipes/values.py     # after a change on purpose: writes values.json again

A hash covers all contexts of one method, one recipe and one image size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

from nolabel import methods, recipes
from nolabel.methods.base import RecipeContext
from nolabel.types import Optim

FILE = Path(__file__).with_suffix(".json")
SIZES = (32, 64, 96, 224)
CONTEXTS = tuple(
    itertools.product(
        (False, True),  # convolutional
        (100, 1000, 100_000),  # images
        (None, 32, 256),  # batch size
        ("cpu", "cuda"),
        (1, 4, 8, 16),  # patch size
    )
)


def _hash(values: list[object]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def of_recipes() -> dict[str, str]:
    """ "method recipe size" -> hash of the recipes for all contexts of that size."""
    table = {}
    for method, name, size in itertools.product(methods.METHODS, ("paper", "auto"), SIZES):
        found: list[object] = []
        for conv, images, batch, device, patch in CONTEXTS:
            context = RecipeContext(
                image_size=size, images=images, batch_size=batch, conv=conv, patch_size=patch,
                device=device,
            )  # fmt: skip
            found.append(dataclasses.asdict(recipes.recipe(methods.load(method), name, context)))
        table[f"{method} {name} {size}"] = _hash(found)
    return table


def of_networks() -> dict[str, str]:
    """The network and patch chosen for each method, image size and machine."""
    table = {}
    for method, size, gpu in itertools.product(methods.METHODS, SIZES, (False, True)):
        kind = methods.load(method)
        backbone, patch = recipes.default_network(
            kind.needs, size, on_gpu=gpu, vit=recipes.takes_vit(kind)
        )
        machine = "gpu" if gpu else "cpu"
        table[f"{method} {size} {machine}"] = f"{backbone}, patch {patch or 'its own'}"
    for backbone, size in itertools.product(
        ("vit_pico", "vit_nano", "vit_micro", "vit_tiny", "swin_nano", "resnet_nano"), SIZES
    ):
        patch = recipes.default_patch(backbone, size)
        table[f"{backbone} {size}"] = f"patch {patch or 'its own'}"
    return table


def of_warmup() -> dict[str, float]:
    """Epochs of warm-up for runs of a few lengths."""
    return {
        f"{epochs} of {steps} steps, {per_epoch} an epoch": recipes.limited_warmup(
            Optim(warmup_epochs=epochs), steps, per_epoch
        ).warmup_epochs
        for epochs, steps, per_epoch in itertools.product((0.0, 2.0, 10.0), (1, 90, 5000), (1, 30))
    }


def table() -> dict[str, dict[str, str] | dict[str, float]]:
    """All three tables."""
    return {"recipes": of_recipes(), "networks": of_networks(), "warm-up": of_warmup()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(table(), indent=0) + "\n", encoding="utf-8")

"""Golden traces: five steps on fixed data, CPU, fp32.  A change of any line of a page shows here.

`NOLABEL_GOLDEN=write` writes the numbers anew, after a change that was meant.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from nolabel import methods
from nolabel.engine.optimiser import build_optimiser, clip_gradients, set_rates
from nolabel.testing import build_small, random_batch
from nolabel.types import Clock, Optim

FILE = Path(__file__).parents[1] / "oracles" / "golden.json"
TEXT = {"vocabulary": 530, "context": 10, "projection": 8, "text_dim": 16, "text_depth": 1,
        "text_heads": 2}  # fmt: skip
DECODER = {"codes": 32, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
SMALL = {
    "autoencoder": {"code": 8, "width": 16},
    "simmim": {"unit": 8},
    "vqvae": {"code_dim": 8, **DECODER},
    "dvae": DECODER,
    "beit": {"smallest_block": 4, "drop_path": 0.0},
    "eva": {"smallest_block": 4, "drop_path": 0.0},
    "clip": TEXT,
    "siglip": TEXT,
    "distill": {"anchors": 16, "hidden": 16},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "triplet": {"hidden": 16, "projection": 8},
    "simclr": {"hidden": 16, "projection": 8},
    "mocov2": {"hidden": 16, "projection": 8, "queue": 12},
    "mocov3": {"hidden": 16, "projection": 8},
    "swav": {"prototypes": 12, "hidden": 16, "projection": 8, "queue": 8, "queue_from_epoch": 0,
             "freeze_prototypes": 1, "local_crops": 1, "local_size": 16},
    "deepclusterv2": {"images": 12, "clusters": 3, "heads": 2, "hidden": 16, "projection": 8,
                      "local_crops": 1, "local_size": 16},
    "obow": {"words": 12, "global_size": 32, "local_crops": 1, "local_size": 16},
    "barlow": {"hidden": 16, "projection": 8},
    "byol": {"hidden": 16, "projection": 8},
    "dino": {"prototypes": 32, "hidden": 16, "bottleneck": 8, "drop_path": 0.0, "local_crops": 1,
             "local_size": 16},
    "ibot": {"prototypes": 32, "hidden": 16, "bottleneck": 8, "drop_path": 0.0, "local_crops": 1,
             "local_size": 16},
    "dinov2": {"prototypes": 32, "patch_prototypes": 16, "hidden": 16, "bottleneck": 8,
               "patch_bottleneck": 8, "drop_path": 0.0, "layer_scale": 0.1, "local_crops": 1,
               "local_size": 16},
}  # fmt: skip


def trace(name: str) -> list[float]:
    """Losses of five steps, two an epoch, with the optimiser's whole path: rates, clip, hooks."""
    kind = methods.load(name)
    options = kind.Options(**SMALL[name])
    method = build_small(kind, options, "vit_pico")
    optim = Optim(lr=2e-3, warmup_epochs=1, clip=3.0)
    optimiser = build_optimiser(method, optim)
    losses = []
    for step in range(5):
        clock = Clock(step, 5, 2)
        set_rates(optimiser, optim, clock)
        batch = random_batch(kind.views(options, 32), step % 2)
        batch = dataclasses.replace(batch, keys=torch.arange(6) + 6 * (step % 2))
        loss = method.step(batch, clock).loss
        loss.backward()
        clip_gradients(method, optim)
        method.before_update(clock)
        optimiser.step()
        optimiser.zero_grad()
        method.after_update(clock)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", list(SMALL))
def test_five_steps_give_the_golden_losses(name):
    losses = trace(name)
    if os.environ.get("NOLABEL_GOLDEN") == "write":
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        FILE.write_text(json.dumps({**known, name: losses}, indent=1, sort_keys=True) + "\n")
    golden = json.loads(FILE.read_text())[name]
    assert losses == pytest.approx(golden, rel=2e-4, abs=1e-5)
    assert len(set(losses)) > 1

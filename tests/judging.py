"""How tests evaluate encoders: k-NN on creatures, and the signs of collapse."""

from __future__ import annotations

import functools
import hashlib
import json
import math

import nolabel as nl
from nolabel.data.creatures.world import Creatures
from nolabel.engine.monitor.signals import collapse

# Settings of a run that must learn in few steps. The recipes warm up for an epoch or two, which is
# longer than these runs; a tenth of an epoch leaves most of the steps at the full rate.
SHORT = {"image_size": 24, "warmup_epochs": 0.1, "precision": "fp32", "quiet": True,
         "checkpoint_every": 100_000}  # fmt: skip


@functools.cache
def judging_creatures(size=24, known=4000):
    """The data of `nl.evaluate`, rendered at the side on which a network was trained: few training
    images, which is fast; many test images, so that the intervals are narrow."""
    return {"train": Creatures("train", size=size, count=known),
            "test": Creatures("test", size=size, count=10_000)}  # fmt: skip


def knn_gain(trained, random, **judge):
    """Top-1 of two encoders by k-NN and their difference with the low end of its 95 % interval.

    The two intervals are taken as independent; on the same images the difference varies less.
    Random weights are evaluated once per test session.
    """
    a = nl.evaluate("knn", trained, **judge).best
    if any(isinstance(v, str) for v in judge.values()):
        b = nl.evaluate("knn", random, **judge).best
    else:
        b = _judged_once(random, **judge)
    margin = math.hypot(a["value"] - a["low"], b["high"] - b["value"])
    gain = a["value"] - b["value"]
    return {"low": gain - margin, "gain": gain, "trained": a["value"], "random": b["value"]}


_JUDGED: dict[tuple, dict] = {}


def _judged_once(random, **judge):
    encoder = nl.load(random)
    weights = hashlib.sha256(repr((encoder.mean, encoder.std, encoder.image_size)).encode())
    for name, value in sorted(encoder.backbone.state_dict().items()):
        weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    # Sets of creatures of one name and size are the same images.
    key = (weights.hexdigest(), *((v.name, len(v)) for v in judge.values()))
    if key not in _JUDGED:
        _JUDGED[key] = nl.evaluate("knn", encoder, **judge).best
    return _JUDGED[key]


def assert_healthy(folder):
    """The last line of a run's metrics shows no sign of collapse."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert collapse(last) is None, (collapse(last), last)

"""Methods beat their random initialisation by k-NN after a short training without labels."""

from __future__ import annotations

import pytest

from nolabel.data.creatures.world import Creatures
from nolabel.errors import NolabelError

VIT = {"backbone": "vit_pico", "image_size": 32, "patch_size": 8}
CASES = {
    "triplet": {"steps": 30, "batch_size": 128},
    "mocov2": {"steps": 100, "batch_size": 128, "image_size": 32, "warmup_epochs": None,
               "known": 2000},
    "mocov3": {"steps": 45, "batch_size": 128},
    "barlow": {"steps": 45},
    "obow": {"steps": 60},
    "byol": {"steps": 80, "batch_size": 128},
    # Few images, because its first epoch only fills the memory.
    "deepclusterv2": {"data": Creatures(size=24, count=1500), "steps": 80, "batch_size": 64},
    "dino": {"steps": 120, **VIT},
    "ibot": {"steps": 120, **VIT},
    "dinov2": {"steps": 100, **VIT},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", list(CASES))
def test_a_method_beats_its_random_initialisation_on_creatures(name, gain_of_a_short_run):
    found = gain_of_a_short_run(name, **{"backbone": "resnet_nano", **CASES[name]})
    assert found["low"] > 0, found


@pytest.mark.long
def test_swav_beats_its_random_initialisation_on_clothes(gain_of_a_short_run):
    """On clothes: with local crops it needs more steps than a minute gives it on creatures."""
    try:
        found = gain_of_a_short_run(
            "swav", data="fashion-mnist", train="fashion-mnist:test", steps=160, **VIT,
            warmup_epochs=None,
        )  # fmt: skip
    except NolabelError as error:
        pytest.skip(f"Fashion-MNIST is not installed: {error}")
    assert found["low"] > 0, found

"""Methods beat their random initialisation by k-NN after a short training without labels."""

from __future__ import annotations

import pytest

from nolabel.data.creatures.world import Creatures
from nolabel.errors import NolabelError

CREATURES = {
    "triplet": {"steps": 40, "batch_size": 128},
    "mocov2": {"steps": 100, "batch_size": 128},
    "mocov3": {"steps": 80, "batch_size": 128},
    "barlow": {"steps": 50},
    "obow": {"steps": 60},
    "byol": {"steps": 210},
    "dino": {"steps": 200, "backbone": "vit_pico", "patch_size": 8},
    "ibot": {"steps": 200, "backbone": "vit_pico", "patch_size": 8},
    "dinov2": {"steps": 100, "batch_size": 32, "backbone": "vit_pico", "known": 5000},
}


@pytest.mark.parametrize("name", list(CREATURES))
def test_a_method_beats_its_random_initialisation_on_creatures(name, gain_of_a_short_run):
    found = gain_of_a_short_run(name, **{"backbone": "resnet_nano", **CREATURES[name]})
    assert found["low"] > 0, found


def test_deepclusterv2_beats_its_random_initialisation_on_few_creatures(gain_of_a_short_run):
    """Few, because its first epoch only fills the memory."""
    found = gain_of_a_short_run(
        "deepclusterv2", data=Creatures(size=32, count=1500), backbone="resnet_nano", steps=130,
        batch_size=64,
    )  # fmt: skip
    assert found["low"] > 0, found


def test_swav_beats_its_random_initialisation_on_clothes(gain_of_a_short_run):
    """On clothes: with local crops it needs more steps than a minute gives it on creatures."""
    try:
        found = gain_of_a_short_run(
            "swav", data="fashion-mnist", train="fashion-mnist:test", steps=160
        )
    except NolabelError as error:
        pytest.skip(f"Fashion-MNIST is not installed: {error}")
    assert found["low"] > 0, found

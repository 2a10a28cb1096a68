"""Each method beats its random initialisation by k-NN after a short training without labels."""

from __future__ import annotations

import pytest

STEPS = {
    "triplet": {"steps": 60, "batch_size": 128},
    "mocov2": {"steps": 100, "batch_size": 128},
    "mocov3": {"steps": 60, "batch_size": 128},
    "swav": {"steps": 120, "batch_size": 64},
    "deepclusterv2": {"steps": 240, "batch_size": 128},
    "obow": {"steps": 120, "batch_size": 64},
    "barlow": {"steps": 80, "batch_size": 128},
    "byol": {"steps": 100, "batch_size": 128},
}


@pytest.mark.parametrize("name", list(STEPS))
def test_a_method_beats_its_random_initialisation_on_creatures(name, knn_of_a_short_run):
    trained, random = knn_of_a_short_run(name, backbone="resnet_nano", **STEPS[name])
    assert trained["low"] > random["high"], (trained, random)

"""Methods beat their random initialisation by k-NN after a short training without labels."""

from __future__ import annotations

import pytest

from nolabel.errors import NolabelError

CREATURES = {  # a small ResNet
    "triplet": {"steps": 60, "batch_size": 128},
    "mocov2": {"steps": 150, "batch_size": 128},
    "mocov3": {"steps": 120, "batch_size": 128},
}
CLOTHES = {"swav": 300, "dinov2": 300}  # multi-crop needs more steps than a minute


@pytest.mark.parametrize("name", list(CREATURES))
def test_a_method_beats_its_random_initialisation_on_creatures(name, knn_of_a_short_run):
    trained, random = knn_of_a_short_run(name, backbone="resnet_nano", **CREATURES[name])
    assert trained["low"] > random["high"], (trained, random)


@pytest.mark.parametrize("name", list(CLOTHES))
def test_a_method_with_local_crops_beats_its_random_initialisation_on_clothes(
    name, knn_of_a_short_run
):
    try:
        trained, random = knn_of_a_short_run(
            name, data="fashion-mnist", test="fashion-mnist:test", steps=CLOTHES[name]
        )
    except NolabelError as error:
        pytest.skip(f"Fashion-MNIST is not installed: {error}")
    assert trained["low"] > random["high"], (trained, random)

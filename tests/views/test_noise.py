"""Noise, and the jitter of each channel by itself: right sizes, and the same in every executor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nolabel.nn import splitmix64
from nolabel.views import FastViews, ReferenceViews, View, ViewPlan, noise


def made(executor, images, **options):
    view = View(name="v", size=images.shape[1], scale=None, flip=0.0, **options)
    channels = images.shape[3]
    plan = ViewPlan(views=(view,), mean=(0.3,) * channels, std=(0.5,) * channels)
    return executor(plan, 3)(images, np.arange(len(images)), 0)["v"][0] * 0.5 + 0.3


def test_the_hash_of_the_noise_is_that_of_the_keys():
    values = np.array([0, 1, 2**40, 2**63 - 1], np.int64)
    want = splitmix64.mix(values.view(np.uint64)).view(np.int64)
    assert (noise._mix(torch.from_numpy(values)).numpy() == want).all()


def test_noise_is_standard_normal_and_independent_between_images_and_pixels():
    x = noise.gaussian_noise(np.arange(40), 5001)
    assert x.shape == (40, 5001) and x.isfinite().all()
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3) < 0.1 and x.abs().max() > 3.9
    assert torch.corrcoef(x).fill_diagonal_(0).abs().max() < 0.07
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 0.01
    assert torch.equal(x[7:9], noise.gaussian_noise(np.array([7, 8]), 5001))


@pytest.mark.parametrize("executor", [FastViews, ReferenceViews])
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (32, 1), (200, 5)])
def test_noise_has_the_deviation_that_was_asked_in_the_share_that_was_asked(
    executor, side, channels
):
    images = np.full((60, side, side, channels), 128, np.uint8)
    x = made(executor, images, noise=0.5, noise_sigma=(0.05, 0.1))
    deviation = x.std((1, 2, 3))
    noisy = deviation > 1e-3
    assert 0.3 < noisy.float().mean() < 0.7
    assert (deviation[noisy] > 0.044).all() and (deviation[noisy] < 0.11).all()
    assert deviation[noisy].max() - deviation[noisy].min() > 0.02
    assert (made(executor, images) == x[~noisy][0]).all()


@pytest.mark.parametrize("side", [32, 200])
def test_both_executors_add_the_same_noise_and_keep_black_and_white(side):
    images = np.zeros((4, side, side, 3), np.uint8)
    images[2:] = 255
    a, b = (made(e, images, noise=1.0, noise_sigma=(0.2, 0.2)) for e in (FastViews, ReferenceViews))
    assert torch.allclose(a, b, atol=1e-5)
    assert a.min() > -1e-5 and a.max() < 1 + 1e-5 and a[:2].max() > 0.5


@pytest.mark.parametrize("executor", [FastViews, ReferenceViews])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_the_jitter_of_channels_scales_each_by_its_own_factor(executor, channels):
    images = np.full((200, 8, 8, channels), 120, np.uint8)
    gains = made(executor, images, channel_jitter=0.4, jitter_p=1.0).mean((2, 3)) / (120 / 255)
    assert gains.min() > 0.59 and gains.max() < 1.41
    assert abs(gains.mean() - 1) < 0.03 and abs(gains.std() - 0.8 / 12**0.5) < 0.02
    if channels > 1:
        assert abs(torch.corrcoef(gains.T).fill_diagonal_(0)).max() < 0.3
    still = made(executor, images, channel_jitter=0.4, jitter_p=0.0)
    assert torch.allclose(still, torch.full((), 120 / 255), atol=1e-5)

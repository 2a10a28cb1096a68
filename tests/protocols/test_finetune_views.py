"""The views of fine-tuning: RandAugment on the official scale, erased rectangles, repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.data.creatures.world import Creatures
from nolabel.protocols import _randaugment
from nolabel.protocols._finetune_views import FinetuneViews, erase_rectangle
from nolabel.protocols._randaugment import OPERATIONS, argument, rand_augment

ORACLE = Path(__file__).parents[1] / "oracles" / "randaugment.json"
LEVELS = json.loads(ORACLE.read_text("utf-8"))["levels"]
GREY = (128, 128, 128)


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_every_operation_gets_the_official_argument(level):
    assert list(LEVELS[level]) == list(OPERATIONS)
    for name, official in LEVELS[level].items():
        for key, negated in (("arguments", False), ("negated", True)):
            if key in official:
                found = argument(name, float(level), negated)
                expected = official[key]
                assert found == (None if expected is None else pytest.approx(expected[0])), name


def test_operations_do_what_their_arguments_say():
    rng = np.random.default_rng(0)
    x = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    a = np.asarray(x)

    def apply(name, value, image=x):
        return np.asarray(OPERATIONS[name](image, value, GREY)).astype(int)

    assert np.array_equal(apply("SolarizeIncreasing", 26), np.where(a < 26, a, 255 - a))
    assert np.array_equal(apply("SolarizeAdd", 99), np.where(a < 128, np.minimum(a + 99, 255), a))
    assert np.array_equal(apply("PosterizeIncreasing", 1), a & 128)
    assert not apply("PosterizeIncreasing", argument("PosterizeIncreasing", 10)).any()
    assert np.array_equal(apply("Invert", 0), 255 - a)
    assert np.array_equal(apply("TranslateXRel", 0.25)[:, :12], a[:, 4:])
    assert (apply("TranslateYRel", -0.25)[:4] == 128).all()
    assert np.array_equal(apply("Rotate", 90), np.rot90(a))
    assert np.abs(apply("BrightnessIncreasing", 0.19) - a * 0.19).max() <= 1
    stripe = np.zeros((16, 16, 3), np.uint8)
    stripe[:, 8] = 255
    moved = apply("ShearX", 0.27, Image.fromarray(stripe))[..., 0].argmax(1)
    assert moved[0] == 8 and moved[-1] == pytest.approx(8 - 0.27 * 15.5, abs=1)


def test_two_operations_each_with_a_half_at_levels_about_the_magnitude(monkeypatch):
    seen = []

    def record(name):
        def operation(image, value, fill):
            seen.append((name, value))
            return image

        return operation

    monkeypatch.setattr(_randaugment, "OPERATIONS", {n: record(n) for n in OPERATIONS})
    image = np.zeros((4, 4, 3), np.uint8)
    for i in range(2000):
        rand_augment(image, 9, np.random.default_rng(i), GREY)
    assert len(seen) == pytest.approx(2000, rel=0.06)
    counts = [sum(n == name for n, _ in seen) for name in OPERATIONS]
    assert min(counts) > 85 and max(counts) < 190  # 133 each
    degrees = np.array([value for name, value in seen if name == "Rotate"])
    assert np.abs(degrees).mean() == pytest.approx(27, abs=0.6)
    assert 0.8 < np.abs(degrees).std() < 2.0 and np.abs(degrees).max() <= 30  # deviation 1.5
    assert 0.35 < (degrees < 0).mean() < 0.65


def make(size=24, magnitude=9.0, erase=0.25):
    return FinetuneViews(size, scale=(0.3, 1.0), flip=0.5, magnitude=magnitude, erase=erase,
                         mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), seed=3)  # fmt: skip


def test_a_view_depends_on_seed_epoch_and_image_only():
    images, keys = Creatures(size=40, count=8).images(np.arange(8)), np.arange(8)
    whole = make()(images, keys, 0)["image"]
    assert whole.shape == (1, 8, 3, 24, 24) and whole.dtype == torch.float32
    part = make()(images[5:7], keys[5:7], 0)["image"]
    torch.testing.assert_close(whole[:, 5:7], part)
    assert not torch.allclose(whole, make()(images, keys, 1)["image"], atol=0.1)


def test_without_randaugment_and_erasing_the_view_is_a_plain_normalised_crop():
    images, keys = Creatures(size=40, count=8).images(np.arange(8)), np.arange(8)
    plain = make(magnitude=0, erase=0)(images, keys, 0)["image"]
    levels = plain[0] * torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    levels = (levels + torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) * 255
    assert levels.min() > -1 and levels.max() < 256


def test_erased_rectangles_are_noise_of_the_right_area():
    shares = []
    for i in range(400):
        x = torch.full((3, 40, 40), 9.0)
        erase_rectangle(x, 0.25, np.random.default_rng(i))
        inside = (x != 9).all(0)
        if inside.any():
            rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
            assert inside.sum() == len(rows) * len(columns)
            shares.append(float(inside.float().mean()))
    assert 70 < len(shares) < 130
    assert (
        min(shares) > 0.01
        and max(shares) < 0.36
        and np.mean(shares) == pytest.approx(0.17, abs=0.03)
    )

"""Images in their own shape and at any size: the grid, the overlays, and what they need."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import nolabel as nl
from nolabel import cli
from nolabel.backbones import build
from nolabel.data.creatures.world import Creatures
from nolabel.encoders import Encoder, load
from nolabel.pictures._tiles import on_image, sheet, tile_shape
from nolabel.pictures._whole import prepare_whole

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}


def photograph(height, width, seed=0):
    """Smooth random colours."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def small_vit():
    return Encoder(build("vit_tiny_patch16_224", image_size=64, kwargs=TINY))


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(480, 480, (60, 60)), (480, 640, (60, 80)), (640, 480, (80, 60)), (900, 300, (120, 60))],
)
def test_480_pixels_of_patches_of_8_give_60_patches_of_the_shorter_side(height, width, grid):
    p = nl.show("attention", small_vit(), [photograph(height, width)], image_size=480)[0]
    assert p.data["attention"].shape == (1, 3, *grid)


def test_the_whole_image_is_seen_and_two_shapes_meet_in_the_middle():
    encoder = small_vit()
    left = np.zeros((64, 96, 3), np.uint8)
    left[:, :8] = 255
    x = prepare_whole(encoder, [left]).x
    assert x.shape == (1, 3, 64, 96)  # nothing is cropped, nothing resized
    torch.testing.assert_close(x, encoder.normalise(left[None]))
    both = prepare_whole(encoder, [photograph(64, 64), photograph(128, 256)])
    assert both.x.shape == (2, 3, 64, 88) and len(both.shown) == 2
    square = Creatures(size=64).read(0).image
    torch.testing.assert_close(prepare_whole(encoder, [square]).x, encoder.normalise(square[None]))
    ready = torch.randn(2, 3, 64, 64)
    assert torch.equal(prepare_whole(encoder, ready).x, ready)


def test_images_are_drawn_at_their_own_resolution():
    image = photograph(300, 400)
    found = prepare_whole(small_vit(), [image])
    assert found.x.shape == (1, 3, 64, 88) and found.shown.shape == (1, 300, 412, 3)
    large = prepare_whole(small_vit(), [photograph(1200, 1200)])
    assert large.shown.shape == (1, 480, 480, 3)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_keep_their_shape_too(channels):
    b = build("vit_tiny_patch16_224", image_size=64, kwargs={**TINY, "in_chans": channels})
    e = Encoder(b, mean=(0.5,) * channels, std=(0.25,) * channels)
    rng = np.random.default_rng(0)
    for dtype, top in ((np.uint8, 256), (np.uint16, 65536)):
        image = rng.integers(0, top, (96, 144, channels)).astype(dtype)
        found = prepare_whole(e, [image])
        assert found.x.shape == (1, channels, 64, 96) and found.shown.shape == (1, 96, 144, 3)


@pytest.mark.parametrize("name", ["random:swin_nano", "random:resnet_nano", "random:vit_pico"])
@pytest.mark.parametrize("what", ["pca", "similarity", "objects"])
def test_every_network_sees_a_wide_image_whole(name, what):
    images = [photograph(64, 96, seed) for seed in (0, 1)]
    p = nl.show(what, load(name, image_size=32), images)[0]
    first = next(iter(p.data.values()))
    h, w = first.shape[1:3]
    assert w == pytest.approx(1.5 * h, abs=0.51)


@pytest.mark.parametrize("what", ["parts", "cosegment", "correspond"])
def test_pictures_of_several_images_keep_their_shape(what):
    images = [photograph(64, 96, seed) for seed in range(4)]
    p = nl.show(what, "random:vit_pico", images)[0]
    assert p.image.shape[1] > p.image.shape[0] * 0.5
    if what != "correspond":
        assert next(iter(p.data.values())).shape[1:] in ((8, 12), (32, 48))


def test_photographs_get_smooth_overlays_and_small_images_blocks():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = 255
    assert on_image(np.zeros((32, 32, 3), np.uint8), colours) is colours
    over = on_image(np.full((200, 300, 3), 100, np.uint8), colours)
    assert over.shape == (200, 300, 3)
    row = over[0, :, 0].astype(int)
    assert row[0] > 150 > row[-1] and (np.diff(row) <= 0).all()  # falls without a step
    assert np.diff(row).min() > -5
    assert tile_shape(np.zeros((1, 32, 32, 3))) == (128, 128)
    assert tile_shape(np.zeros((1, 480, 640, 3))) == (320, 427)
    assert sheet([[over, over]], side=(100, 150)).shape == (8 + 108, 8 + 2 * 158, 3)


def test_a_loaded_encoder_serves_another_size_and_stays_as_it_is():
    encoder = small_vit()
    p = nl.show("pca", encoder, [photograph(128, 128)], image_size=128)[0]
    assert p.data["scores"].shape[:3] == (1, 16, 16) and encoder.image_size == 64
    report = nl.evaluate("attention", encoder, test="creatures", image_size=32, batch_size=250)
    assert "patches of 8 px at 32 px" in report.notes[0]


def test_the_command_line_takes_an_image_size(tmp_path, capsys):
    Image.fromarray(photograph(96, 144)).save(tmp_path / "a.png")
    cli.main(["show", "attention", "--encoder", "random:vit_pico", "--data", str(tmp_path),
              "--out", str(tmp_path / "out"), "--image-size", "64"])  # fmt: skip
    with np.load(tmp_path / "out" / "attention.npz") as data:
        assert data["attention"].shape[-2:] == (16, 24)
    cli.main(["evaluate", "labelfree", "--encoder", "random:vit_pico", "--test", "creatures:test",
              "--image-size", "16", "--views", "2", "--json",
              str(tmp_path / "r.json")])  # fmt: skip
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["rows"]

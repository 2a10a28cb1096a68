"""Attention segmentation: areas, ceilings and voids by naive counts; heads chosen apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import nolabel as nl
from nolabel.encoders import Encoder
from nolabel.errors import DataError, UsageError
from nolabel.protocols.attention import (
    FigureSplits,
    areas,
    ceiling,
    iou,
    open_test,
    prepare_mask,
    run_attention,
)
from nolabel.protocols.data.figures import Figures, Pairs


def pixels(guess, cell):
    return np.kron(guess, np.ones((cell, cell), bool)).astype(bool)


def test_areas_and_iou_equal_a_count_of_pixels_with_void_left_out():
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 255], (16, 16), p=[0.5, 0.4, 0.1]).astype(np.uint8)
    guess = rng.random((3, 4, 4)) > 0.5
    found = iou(guess, *areas(mask, 4))
    for g, value in zip(guess, found, strict=True):
        counted = mask != 255
        a, b = pixels(g, 4) & counted, (mask == 1) & counted
        assert value == pytest.approx((a & b).sum() / (a | b).sum())


def test_the_ceiling_is_the_best_of_all_sets_of_patches():
    rng = np.random.default_rng(1)
    for _ in range(5):
        mask = (rng.random((12, 12)) > rng.random()).astype(np.uint8)
        inside, outside = areas(mask, 4)
        best = max(
            float(iou(np.array(choice).reshape(3, 3), inside, outside))
            for choice in itertools.product([False, True], repeat=9) if any(choice)
        )  # fmt: skip
        assert ceiling(inside, outside) == pytest.approx(best)


def test_masks_are_cut_as_images_are():
    encoder = nl.load("random:vit_small_patch16_224", image_size=96)
    yy, xx = np.mgrid[:120, :200]
    mask = ((yy - 60) ** 2 + (xx - 100) ** 2 < 40**2).astype(np.uint8)
    image = np.repeat(mask[..., None] * np.uint8(255), 3, -1)
    seen = encoder.prepare([image])[0].mean(0) > 0
    cut = prepare_mask(mask, encoder)
    assert cut.shape == (96, 96)
    assert (seen.numpy() == (cut == 1)).mean() > 0.98


class TwoHeads(Encoder):
    """An encoder with the attention of head 1 on the figure and of head 0 on the ground."""

    def attention(self, x, layer=-1, **_):
        out = []
        for image in x:
            bright = image.mean(0).reshape(8, 4, 8, 4).mean((1, 3)).flatten()
            share = (bright - bright.min()) ** 4
            out.append(torch.stack([(share.max() - share), share]) + 1e-6)
        return torch.stack(out)


class Squares(Pairs):
    """Bright squares on dark ground."""

    def __init__(self, n, seed):
        self.corners = np.random.default_rng(seed).integers(0, 5, (n, 2)) * 4

    def __len__(self):
        return len(self.corners)

    def __getitem__(self, i):
        top, left = self.corners[i]
        mask = np.zeros((32, 32), np.uint8)
        mask[top : top + 12, left : left + 12] = 1
        return np.repeat(mask[..., None] * np.uint8(200), 3, -1) + np.uint8(20), mask


def test_the_head_is_chosen_on_train_and_void_and_ceiling_are_right():
    encoder = TwoHeads(nl.load("random:vit_pico").backbone)
    splits = (Figures("squares", Squares(8, 0)), Figures("squares", Squares(20, 1)))
    report = run_attention(encoder, None, FigureSplits("squares", *splits), mass=0.9)
    rows = {r["setting"]: r["value"] for r in report.rows}
    assert "one head (1, chosen on train)" in rows
    assert rows["one head (1, chosen on train)"] > 0.7
    assert rows["most that the grid allows"] == 1.0  # squares lie on the grid
    assert rows["whole image"] == pytest.approx(144 / 1024)
    assert rows["best head of each image"] >= rows["one head (1, chosen on train)"]


def test_the_protocol_runs_on_creatures_and_keeps_its_order():
    report = nl.evaluate("attention", "random:vit_pico", test="creatures")
    rows = [r["value"] for r in report.rows]
    one, mean, best, most, whole = rows
    assert best >= one and most >= best and most > 0.5
    assert 0 < mean < 1 and 0 < whole < 0.6


def test_voc_layout_is_read_with_its_void(tmp_path):
    for kind in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, split in enumerate(("train", "val")):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(
            tmp_path / "JPEGImages" / f"{i}.jpg"
        )
        mask = np.zeros((40, 60), np.uint8)
        mask[10:30, 20:40] = 7
        mask[9, 20:40] = 255
        coloured = Image.fromarray(mask, mode="P")
        coloured.putpalette(list(range(256)) * 3)
        coloured.save(tmp_path / "SegmentationClass" / f"{i}.png")
        (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{i}\n")
    encoder = nl.load("random:vit_pico")
    pair = open_test(str(tmp_path), encoder)
    _, mask = pair.test.pairs[0]
    assert set(np.unique(mask)) == {0, 1, 255}
    assert len(nl.evaluate("attention", "random:vit_pico", test=str(tmp_path)).rows) == 5
    (tmp_path / "SegmentationClass" / "1.png").unlink()
    with pytest.raises(DataError, match="1 files are missing"):
        open_test(str(tmp_path), encoder)


def test_an_encoder_without_attention_is_refused():
    with pytest.raises(UsageError, match="attention"):
        nl.evaluate("attention", "random:resnet_nano", test="creatures")
    with pytest.raises(UsageError, match="PASCAL VOC"):
        nl.evaluate("attention", "random:vit_pico", test="digits")

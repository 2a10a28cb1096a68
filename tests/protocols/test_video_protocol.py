"""Video segmentation: official numbers, naive loops, perfect and meaningless patches, layouts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nolabel as nl
from nolabel.data.creatures.videos import draw_video
from nolabel.errors import DataError, UsageError
from nolabel.protocols._propagation import boundary, boundary_score, jaccard, propagate
from nolabel.protocols.data.davis import open_clips
from nolabel.protocols.video import Options, resize_bilinear, segment, upsample_labels

ORACLES = Path(__file__).parents[1] / "oracles"


def test_propagation_matches_the_official_numbers():
    o = load_file(ORACLES / "label_propagation.safetensors")
    unit = torch.nn.functional.normalize
    target = unit(o["target"], dim=1).reshape(6, 7, -1)
    sources = unit(o["sources"], dim=1).transpose(1, 2).reshape(3, 6, 7, -1)
    found = propagate(target, sources, o["segmentations"], window=2, topk=5, temperature=0.1)
    torch.testing.assert_close(found, o["propagated"][0], atol=1e-5, rtol=1e-4)


def test_scores_match_the_official_numbers():
    o = {k: v.numpy() for k, v in load_file(ORACLES / "video_scores.safetensors").items()}
    for t in range(5):
        a, b = o["prediction"][t] > 0, o["truth"][t] > 0
        assert jaccard(a, b) == pytest.approx(float(o["jaccard"][t]), abs=1e-6)
        assert boundary_score(a, b) == pytest.approx(float(o["boundary"][t]), abs=1e-6)


@pytest.mark.parametrize("window", [0, 1])
def test_propagation_equals_a_naive_loop(window):
    g = torch.Generator().manual_seed(0)
    target = torch.randn(4, 5, 3, generator=g)
    sources = torch.randn(2, 4, 5, 3, generator=g)
    labels = torch.rand(2, 3, 4, 5, generator=g)
    found = propagate(target, sources, labels, window=window, topk=4, temperature=0.5)
    for y in range(4):
        for x in range(5):
            votes = [
                (float(target[y, x] @ sources[n, v, u]) / 0.5, labels[n, :, v, u])
                for n in range(2) for v in range(4) for u in range(5)
                if not window or (abs(v - y) <= window and abs(u - x) <= window)
            ]  # fmt: skip
            votes = sorted(votes, key=lambda p: -p[0])[:4]
            weights = torch.tensor([math.exp(s) for s, _ in votes])
            expected = sum(
                w * lab for w, (_, lab) in zip(weights / weights.sum(), votes, strict=True)
            )
            torch.testing.assert_close(found[:, y, x], expected, atol=1e-5, rtol=1e-5)


def test_boundary_scores_of_shifted_squares():
    a = np.zeros((64, 64), bool)
    a[20:40, 20:40] = True
    assert boundary_score(a, a) == 1.0 and jaccard(a, a) == 1.0
    near, far = np.roll(a, 1, 1), np.roll(a, 12, 1)
    assert boundary_score(near, a) == 1.0  # one pixel is within the tolerance
    assert boundary_score(far, a) < 0.7
    none = np.zeros_like(a)
    assert boundary_score(none, none) == jaccard(none, none) == 1.0
    assert boundary_score(a, none) == jaccard(a, none) == 0.0
    assert boundary(none).sum() == 0
    void = np.zeros_like(a)
    void[:, 30:] = True  # the halves that differ do not count
    b = a.copy()
    b[20:40, 30:40] = False
    assert jaccard(a, b) == 0.5 and jaccard(a, b, void) == 1.0


def test_creatures_move_keep_their_masks_and_come_out_the_same_each_time():
    images, masks = draw_video(3, size=64)
    again, _ = draw_video(3, size=64)
    assert np.array_equal(images, again)
    assert set(np.unique(masks[0])) == {0, 1, 2}
    changed = [float((masks[t] != masks[0]).mean()) for t in range(1, 24)]
    assert max(changed) > 0.03
    # Where a creature is, the picture differs from one in which it is not.
    assert np.abs(images[1:].astype(int) - images[:-1]).mean() > 0.5
    other, _ = draw_video(4, size=64)
    assert not np.array_equal(images, other)


def with_patches(monkeypatch, clip, kind):
    from nolabel.protocols import video

    count = iter(range(10_000))

    def patches(encoder, frame, side):
        t = next(count)
        mask = torch.from_numpy(np.array(Image.fromarray(clip.mask(t)).resize((16, 16), 0)))
        if kind == "truth":
            z = torch.nn.functional.one_hot(mask.long(), 4).float()
        else:
            z = torch.randn(16, 16, 8, generator=torch.Generator().manual_seed(t))
            z = torch.nn.functional.normalize(z, dim=-1)
        return z, (64, 64)

    monkeypatch.setattr(video, "frame_patches", patches)


def mean_jaccard(clip, guesses):
    return np.mean([
        jaccard(g == n, clip.mask(t) == n)
        for t, g in enumerate(guesses) if 0 < t < clip.length - 1 for n in (1, 2)
    ])  # fmt: skip


def test_patches_that_know_the_object_carry_it_and_noise_loses_it(monkeypatch):
    clip = open_clips("creatures", 64).clips[0]
    o = Options(window=0)
    with_patches(monkeypatch, clip, "truth")
    known = mean_jaccard(clip, list(segment(None, clip, 64, o)))
    with_patches(monkeypatch, clip, "noise")
    noise = mean_jaccard(clip, list(segment(None, clip, 64, o)))
    assert known > 0.5, known  # whole patches of 4 px allow no more for thin limbs
    assert noise < known - 0.25, noise


def test_masks_are_enlarged_object_by_object():
    soft = torch.zeros(3, 4, 4)
    soft[0] = 0.6
    soft[1, :2, :2] = 0.5  # the strongest of its object, though below the ground's value
    mask = upsample_labels(soft, (16, 16), (8, 8))
    assert mask.shape == (8, 8) and mask[1, 1] == 1 and mask[7, 7] == 0


def test_the_protocol_runs_on_creatures_with_a_vit_and_a_resnet(monkeypatch):
    monkeypatch.setattr("nolabel.protocols.data.davis.VIDEOS", 2)
    for name in ("random:vit_pico", "random:resnet_nano"):
        report = nl.evaluate("video", name, test="creatures")
        rows = {(r["setting"], r["metric"]): r["value"] for r in report.rows}
        assert rows["propagated", "J&F"] == pytest.approx(
            (rows["propagated", "J"] + rows["propagated", "F"]) / 2
        )
        assert 0.0 < rows["propagated", "J"] < 1.0
        assert ("first mask, unmoved", "J&F") in rows
        assert "4 objects in 2 videos" in report.notes[0]


def test_davis_layout_is_read_and_checked(tmp_path):
    images, masks = draw_video(0, frames=4, size=64)
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "480p" / "walk").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("walk\n")
    for t in range(4):
        Image.fromarray(images[t]).save(tmp_path / "JPEGImages" / "480p" / "walk" / f"{t:05d}.jpg")
        mask = Image.fromarray(masks[t], mode="P")
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        mask.save(tmp_path / "Annotations" / "480p" / "walk" / f"{t:05d}.png")
    clip = open_clips(tmp_path, 64).clips[0]
    assert clip.length == 4 and np.array_equal(clip.mask(2), masks[2])
    report = nl.evaluate("video", "random:vit_pico", test=str(tmp_path), side=64)
    assert "2 objects in 1 videos, shorter side 64 px" in report.notes[0]
    (tmp_path / "Annotations" / "480p" / "walk" / "00002.png").unlink()
    with pytest.raises(DataError, match="4 frames and 3 masks"):
        open_clips(tmp_path, 64)
    with pytest.raises(UsageError, match="layout of DAVIS-2017"):
        open_clips(tmp_path / "Annotations", 64)


def test_frames_are_resized_by_bilinear_interpolation_between_pixel_centres():
    frame = np.zeros((2, 4, 3), np.uint8)
    frame[:, :, 0] = [0, 80, 160, 240]
    twice = resize_bilinear(frame, 2, 8)[0, :, 0]
    assert twice.tolist() == [0, 20, 60, 100, 140, 180, 220, 240]
    half = resize_bilinear(frame, 2, 2)[0, :, 0]  # no smoothing: the mean of two pixels
    assert half.tolist() == [40, 200]
    assert resize_bilinear(frame, 2, 4) is frame

"""Copies: attacks repeat, whitening whitens, a right list scores one, hashes find mild copies."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

import nolabel as nl
from nolabel.data.creatures.world import Creatures
from nolabel.data.source import Source
from nolabel.encoders import load
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.protocols.copies import (
    average_precisions,
    describe,
    perceptual_hash,
    whitening,
)
from nolabel.protocols.data.attacks import ATTACKS, attacked
from nolabel.protocols.data.copies import LazyImages, alter
from nolabel.types import Sample

IMAGE = Creatures("test", size=64).read(0).image


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_changes_the_image_and_comes_out_the_same_each_time(name):
    a, b = attacked(IMAGE, name, (0, 1)), attacked(IMAGE, name, (0, 1))
    assert np.array_equal(a, b) and a.dtype == np.uint8 and a.shape[2] == 3
    assert a.shape != IMAGE.shape or not np.array_equal(a, IMAGE)
    if name.startswith("cut"):
        share = a.shape[0] * a.shape[1] / 64**2
        assert share == pytest.approx(float(name[4:-1]) / 100, abs=0.03)


def test_stronger_compression_changes_more():
    errors = [
        np.abs(attacked(IMAGE, f"jpeg {q}", (0,)).astype(int) - IMAGE).mean() for q in (75, 20, 3)
    ]
    assert errors == sorted(errors) and errors[0] < errors[2] / 2


def test_scores_of_lists():
    similar = np.array([[0.9, 0.1, 0.2], [0.9, 0.5, 0.1]])
    assert average_precisions(similar, np.array([0, 1])).tolist() == [1.0, (0 / 1 + 1 / 2) / 2]
    late = np.zeros((1, 30))
    late[0, :25] = 1.0
    assert average_precisions(late, np.array([27])).tolist() == [0.0]  # only the first twenty count


def test_whitened_features_have_no_direction_and_the_original_way_differs():
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=g)
    z = torch.randn(4000, 6, generator=g) @ mix + 3.0
    prepare = whitening(z, True)
    raw = (z.double() - z.double().mean(0)).float()
    y = prepare(z)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(4000))
    covariance = y.T @ y / 4000  # of unit vectors in all directions: the identity by sixths
    torch.testing.assert_close(covariance, torch.eye(6) / 6, atol=0.02, rtol=0)
    assert (raw.T @ raw / 4000).diagonal().std() > 0.5
    assert not torch.allclose(whitening(z, False)(z), y, atol=1e-2)


def test_the_hash_bears_compression_and_tells_pictures_apart():
    own = perceptual_hash(IMAGE)
    assert own.shape == (63,) and set(np.unique(own)) == {-1.0, 1.0}
    mild = perceptual_hash(attacked(IMAGE, "jpeg 75", (0,)))
    other = perceptual_hash(Creatures("test", size=64).read(1).image)
    assert own @ mild > 55 and own @ other < 45


def test_originals_come_first_and_of_creatures_near_duplicates_follow():
    data = alter(Creatures("test", count=120), seed=0)
    n = len(data.queries["blur"][1])
    originals, later, distractors = data.database
    assert [len(x) for x in data.database] == [n, n, 40] == [20, 20, 40] and len(data.others) == 60
    assert np.array_equal(originals[3], Creatures("test").read(3).image)
    assert np.array_equal(distractors[0], Creatures("test").read(20).image)
    moved = np.abs(later[3].astype(int) - originals[3]).mean()
    other = np.abs(originals[4].astype(int) - originals[3]).mean()
    assert 0 < moved < other


def test_the_protocol_runs_and_mild_copies_find_their_original():
    report = nl.evaluate("copies", "random:vit_pico", test=Creatures("test", count=150))
    rows = {r["setting"]: r["value"] for r in report.rows}
    assert rows["jpeg 75"] > 0.7 > rows["cut 30%"]
    assert rows["jpeg 75, perceptual hash"] > 0.9
    assert report.best["setting"] == "all" and 0 < report.best["value"] < 1
    plain = nl.evaluate(
        "copies", "random:resnet_nano", test=Creatures("test", count=90), whiten=False
    )
    assert "not whitened" in plain.notes[0]


def test_copydays_layout_is_read_and_checked(few_creatures, tmp_path):
    for kind in ("original", "strong", "jpeg/75", "jpeg/3", "more"):
        (tmp_path / kind).mkdir(parents=True)
    for i in range(4):
        x = Creatures("test", size=64).read(i).image
        Image.fromarray(x).save(tmp_path / "original" / f"20{i}000.png")
        Image.fromarray(attacked(x, "text", (i,))).save(tmp_path / "strong" / f"20{i}001.png")
        for q in (75, 3):
            Image.fromarray(attacked(x, f"jpeg {q}", (i,))).save(
                tmp_path / "jpeg" / str(q) / f"20{i}001.png"
            )
    for i in range(4, 30):
        x = Creatures("test", size=64).read(i).image
        Image.fromarray(x).save(tmp_path / "more" / f"{i}.png")
    (tmp_path / "set").mkdir()
    for kind in ("original", "strong", "jpeg"):
        (tmp_path / kind).rename(tmp_path / "set" / kind)
    given = {"test": str(tmp_path / "set"), "distractors": str(tmp_path / "more")}
    report = nl.evaluate("copies", "random:vit_pico", **given)
    rows = {r["setting"]: r["value"] for r in report.rows}
    assert {"strong", "jpeg 75", "jpeg 3", "all"} <= set(rows)
    assert report.best["setting"] == "strong" and rows["jpeg 75"] > 0.9
    with pytest.raises(UsageError, match="--distractors"):
        nl.evaluate("copies", "random:vit_pico", test=str(tmp_path / "set"))
    assert "30 images in the database" not in report.notes[0]
    assert "17 images in the database" in report.notes[0]
    whole = nl.evaluate("copies", "random:vit_pico", **given, whiten_on="creatures:test")
    assert "30 images in the database" in whole.notes[0]  # no distractor is kept back
    assert "whitened on 200 other" in whole.notes[0]
    (tmp_path / "set" / "strong" / "209001.png").write_bytes(b"x")
    with pytest.raises(DataError, match="209001.png"):
        nl.evaluate("copies", "random:vit_pico", **given)
    with pytest.raises(DataError, match="60 or more"):
        nl.evaluate("copies", "random:vit_pico", test=Creatures("test", count=20))


class Photographs(Source):
    """Images of 120 kB, made when they are read."""

    name = "photographs"

    def __len__(self):
        return 300

    def path(self, i, /):
        return f"{i}.jpg"

    def read(self, i, /, *, sufficient_pixels=None):
        if i == 299:
            raise BadImage(self.path(i), "cut off")
        rng = np.random.default_rng(i)
        return Sample(image=rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))


def test_images_are_read_when_they_are_needed_and_never_held():
    images = LazyImages(Photographs(), range(299))
    tracemalloc.start()
    z, hashes = describe(load("random:vit_pico"), images, 32, 4.0, 16, lambda n: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(z) == len(hashes) == 299
    assert peak < 12 * 2**20, peak  # all of them take 36 MB
    assert np.array_equal(images[5:][0], images[5]) and len(images[5:]) == 294
    with pytest.raises(DataError, match="299.jpg"):
        describe(load("random:vit_pico"), LazyImages(Photographs()), 32, 4.0, 16, lambda n: None)

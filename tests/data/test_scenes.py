"""Scenes of several creatures: numbers, captions and images agree."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from nolabel.data.creatures import world as creatures
from nolabel.data.creatures.scenes import Scenes
from nolabel.data.creatures.world import render
from nolabel.data.open import open_source
from nolabel.errors import UsageError

WORDS = ("", "two", "three", "four")


@pytest.fixture(autouse=True)
def no_shared_cache(monkeypatch):
    """Disables the cache that sets share."""
    monkeypatch.setattr(creatures, "SHARED_BYTES", 0)
    monkeypatch.setattr(creatures, "_CACHES", {})


def test_labels_count_the_creatures_and_every_number_is_as_frequent():
    source = Scenes("test", count=40)
    assert np.bincount(source.labels).tolist() == [10] * 4
    for i in range(12):
        scene, sample = source.scene(i), source.read(i)
        number = len(scene.creatures)
        assert sample.label == source.labels[i] == number - 1
        assert source.classes[sample.label] == ("one", *WORDS[1:])[number - 1]
        assert sample.text == scene.caption == source.read_text(i)
        if number > 1:
            assert sample.text.startswith(f"{WORDS[number - 1]} creatures: ")


def test_many_images_are_those_read_one_by_one_in_any_order(monkeypatch):
    source = Scenes("train", size=24, count=30, seed=3)
    some = np.array([7, 2, 29, 2, 11])
    images = source.images(some)
    for image, i in zip(images, some, strict=True):
        assert np.array_equal(image, source.read(int(i)).image)
        assert np.array_equal(image, render(source.scene(int(i)), 24).image)
    assert source.read_texts(some)[1] == source.read_texts(some)[3] == source.read(2).text
    monkeypatch.setattr(creatures, "CACHE_BYTES", 0)  # too large for the cache: as asked for
    assert np.array_equal(source.images(some), images)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.images(some), images) and len(copy) == 30


def test_it_is_a_named_set_of_two_splits_that_share_no_scene():
    train, test = open_source("scenes"), open_source("scenes:test", image_size=40)
    assert (len(train), len(test)) == (10_000, 2_000)
    assert test.read(0).image.shape == (40, 40, 3)
    assert train.read(0).text != test.read(0).text
    with pytest.raises(UsageError, match="split of scenes"):
        open_source("scenes:val")
    with pytest.raises(IndexError):
        Scenes("test", count=3).read(3)

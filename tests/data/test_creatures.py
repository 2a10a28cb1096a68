"""Creatures: one scene for one (seed, index), and ground truth that fits the pixels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from nolabel.data.creatures import world as creatures
from nolabel.data.creatures.scenes import Scenes
from nolabel.data.creatures.world import (
    COLOURS,
    KEYPOINTS,
    KINDS,
    PARTS,
    Creatures,
    draw_scene,
    render,
)
from nolabel.errors import UsageError


@pytest.fixture(autouse=True)
def worlds(monkeypatch):
    """Starts with an empty shared cache."""
    monkeypatch.setattr(creatures, "SHARED_BYTES", 0)
    found: dict[tuple[object, ...], object] = {}
    monkeypatch.setattr(creatures, "_CACHES", found)
    return found


def test_an_image_does_not_depend_on_its_batch_or_on_the_order() -> None:
    whole = Creatures(count=60).images()
    some = [41, 3, 3, 57, 0]
    assert np.array_equal(Creatures(count=60).images(some), whole[some])
    assert np.array_equal(Creatures().images([41])[0], whole[41])
    assert np.array_equal(Creatures(count=60).read(41).image, whole[41])


def test_another_seed_gives_other_images() -> None:
    assert not np.array_equal(Creatures(count=5).images(), Creatures(count=5, seed=1).images())


def test_train_and_test_share_no_image() -> None:
    train, test = Creatures("train", count=300).images(), Creatures("test", count=300).images()
    assert not {i.tobytes() for i in train} & {i.tobytes() for i in test}


def test_labels_are_balanced_and_known_before_rendering() -> None:
    for split, number in (("train", 10_000), ("test", 2_000)):
        source = Creatures(split)
        assert len(source) == number
        assert source.labels.dtype == np.int64
        counts = np.bincount(source.labels, minlength=len(KINDS))
        assert counts.min() == counts.max() == number // len(KINDS)
    assert len(set(Creatures().labels[:: len(KINDS)])) > 1  # no kind is at every tenth index


def test_labels_are_the_kinds_that_are_drawn() -> None:
    source = Creatures(count=30)
    assert source.classes == KINDS
    assert [source.read(i).label for i in range(30)] == source.labels.tolist()


@pytest.mark.parametrize("size", [16, 32, 64, 96, 224])
def test_every_size_gives_images_and_ground_truth_of_that_size(size: int) -> None:
    sample = Creatures(size=size).read(7)
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask is not None
    assert sample.mask.shape == sample.parts.shape == (size, size)
    assert sample.keypoints.shape == (len(KEYPOINTS), 3)


def test_the_mask_is_the_union_of_the_parts() -> None:
    source = Creatures(count=50)
    seen: set[int] = set()
    for i in range(50):
        sample = source.read(i)
        assert np.array_equal(sample.mask, sample.parts > 0)
        assert 15 < sample.mask.sum() < 0.7 * sample.mask.size
        seen |= set(np.unique(sample.parts).tolist())
    assert seen == set(range(len(PARTS)))


def test_creatures_lie_inside_the_image() -> None:
    source = Creatures(size=64, count=50)
    for i in range(50):
        mask = source.read(i).mask
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()


def test_visible_keypoints_lie_on_the_figure() -> None:
    source = Creatures(size=64, count=100)
    for i in range(100):
        sample = source.read(i)
        assert (sample.keypoints[:, :2] >= 0).all()
        assert (sample.keypoints[:, :2] < 64).all()
        ys, xs = np.nonzero(sample.mask)
        for x, y, visible in sample.keypoints:
            if visible:
                assert np.hypot(xs + 0.5 - x, ys + 0.5 - y).min() < 1.5
            else:
                assert (x, y) == (0, 0)
        assert sample.keypoints[KEYPOINTS.index("head"), 2] == 1


def test_an_eye_keypoint_lies_on_a_part_called_eye() -> None:
    source = Creatures(size=96, count=50)
    for i in range(50):
        sample = source.read(i)
        x, y, _ = sample.keypoints[KEYPOINTS.index("eye")]
        assert PARTS[sample.parts[int(y), int(x)]] == "eye"


def test_a_scene_is_the_same_at_every_size() -> None:
    small, large = Creatures(size=32, count=30), Creatures(size=64, count=30)
    for i in range(30):
        a, b = small.read(i), large.read(i)
        halved = b.image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - a.image).mean() < 4
        assert np.allclose(a.keypoints[:, :2] * 2, b.keypoints[:, :2], atol=1e-3)
        assert a.text == b.text


def test_the_caption_names_colour_kind_and_ground() -> None:
    source = Creatures(count=30)
    for i in range(30):
        text = source.read(i).text
        assert KINDS[source.labels[i]] in text
        assert any(colour in text for colour in COLOURS)
        assert text.endswith("ground")


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_caption_of_several_creatures_has_their_number_and_relation(number: int) -> None:
    for i in range(20):
        scene = draw_scene(i, creatures=number)
        sample = render(scene, 64)
        assert sample.text.startswith(("two", "three", "four")[number - 2])
        assert sample.keypoints.shape == (number * len(KEYPOINTS), 3)
        heads = sample.keypoints[KEYPOINTS.index("head") :: len(KEYPOINTS)]
        places = {(bool(x > 32), bool(y > 32)) for x, y, _ in heads}
        assert len(places) == number  # each in its own quarter
        if " left of " in sample.text:
            assert heads[0, 0] < heads[1, 0]
        if " above " in sample.text:
            assert heads[0, 1] < heads[1, 1]


def test_one_creature_scenes_are_those_of_the_source() -> None:
    sample = render(draw_scene(12, split="test"), 32)
    assert np.array_equal(sample.image, Creatures("test").images([12])[0])


def test_pixels_alone_say_little_about_the_kind() -> None:
    train, test = Creatures(count=2_000), Creatures("test", count=400)
    a, b = (c.images().reshape(len(c), -1).astype(np.float32) for c in (train, test))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    similar = b @ a.T
    near = np.argpartition(-similar, 20, axis=1)[:, :20]
    weight = np.exp(np.take_along_axis(similar, near, axis=1) / 0.07)
    votes = np.zeros((len(b), len(KINDS)))
    np.add.at(votes, (np.arange(len(b))[:, None], train.labels[near]), weight)
    assert 0.1 < (votes.argmax(axis=1) == test.labels).mean() < 0.4


def test_a_source_survives_pickling() -> None:
    source = Creatures(count=20)
    images = source.images()
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 5_000
    assert np.array_equal(copy.images(), images)
    assert copy.path(3) == "creatures:train/00003"


def test_the_callers_changes_do_not_reach_the_cache() -> None:
    source = Creatures(count=3)
    source.images()[:] = 0
    assert source.images().any()


def test_a_set_that_is_opened_again_is_not_rendered_again(worlds, monkeypatch) -> None:
    monkeypatch.setattr(creatures, "SHARED_BYTES", 10**6)
    drawn, real = [], Creatures._render
    monkeypatch.setattr(
        Creatures, "_render", lambda s, which: drawn.append(len(which)) or real(s, which)
    )
    small = Creatures(count=20).images()
    large = Creatures(count=30).images()
    assert np.array_equal(large[:20], small)
    assert np.array_equal(Creatures(count=20).images(), small)
    assert drawn == [20, 10, 0]
    others = [
        Creatures(count=20, size=16),
        Creatures("test", count=20),
        Creatures(count=20, seed=1),
    ]
    for other in others:
        other.images()
    assert drawn == [20, 10, 0, 20, 20, 20]
    assert len({o.images().tobytes() for o in (*others, Scenes(count=20))}) == 4

    for seed in range(40):  # of 30,720 bytes: more than are kept
        Creatures(count=10, seed=seed).images()
    assert sum(w.images.nbytes for w in worlds.values()) <= 10**6
    assert list(worlds)[-1] == (Creatures, "train", 32, 39)


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        Creatures("trian")
    with pytest.raises(UsageError, match="16 or more"):
        Creatures(size=8)
    with pytest.raises(UsageError, match="1 to 4"):
        draw_scene(0, creatures=5)
    with pytest.raises(IndexError):
        Creatures(count=3).read(3)

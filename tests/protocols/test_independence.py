"""The test set is independent of train: no group, no image and no copy is in both."""

from __future__ import annotations

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from nolabel.data.copies import number_equal_images
from nolabel.data.open import open_source
from nolabel.data.source import Source, Subset
from nolabel.data.sources.arrays import Arrays
from nolabel.data.split import independent_units, split
from nolabel.errors import DataError, UsageError
from nolabel.protocols.run import evaluate
from nolabel.protocols.sets import open_sets
from nolabel.tools.pack import Packing, pack
from nolabel.types import Sample

RNG = np.random.default_rng(0)


def draw(path):
    """Writes an image of noise, unlike any other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return str(path)


def table(path, head, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(path)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def patients(folder, count=20, images=6, prefix="p"):
    """A table of patients with a random diagnosis each."""
    rows = [
        (draw(folder / f"{prefix}{p}_{k}.png"), "ab"[p * 7 % 3 % 2], f"{prefix}{p}")
        for p in range(count)
        for k in range(images)
    ]
    return table(folder / f"{prefix}.csv", ("path", "label", "group"), rows)


class Grouped(Source):
    """A user's own source that knows groups."""

    def __init__(self):
        self.labels = np.repeat([0, 1], 20)
        self.groups = np.arange(40) // 4

    def __len__(self):
        return 40

    def read(self, i):
        return Sample(image=np.full((4, 4, 3), i, np.uint8))


def whole_groups(train, test):
    return not set(train.groups.tolist()) & set(test.groups.tolist())


def test_groups_are_never_divided_whatever_the_source(tmp_path):
    spec = patients(tmp_path)
    packing = Packing(shard_images=50)
    packed = pack(open_source(spec), tmp_path / "packed", packing)["pattern"]
    for train in (spec, packed, Grouped(), Subset(open_source(spec), np.arange(100))):
        a, b, notes = open_sets(train)
        assert whole_groups(a, b) and set(b.labels.tolist()) == {0, 1}
        assert 0.1 < len(b) / (len(a) + len(b)) < 0.3
        assert "groups were kept whole" in notes[0]


def test_the_share_is_kept_with_groups_of_unequal_size_and_of_several_classes():
    units = np.repeat(np.arange(60), RNG.integers(1, 12, 60))
    labels = RNG.integers(0, 3, len(units))
    source = Arrays("x", np.zeros((len(units), 2, 2), np.uint8), labels, ("a", "b", "c"))
    rest, part = split(source, 0.2, seed=1, units=units)
    assert not set(units[rest.indices]) & set(units[part.indices])
    for c in range(3):
        assert 0.14 < (part.labels == c).sum() / (labels == c).sum() < 0.26
    again = split(source, 0.2, seed=1, units=units)[1]
    assert np.array_equal(part.indices, again.indices)
    assert not np.array_equal(part.indices, split(source, 0.2, seed=2, units=units)[1].indices)


def test_a_class_of_two_groups_is_in_both_parts_and_one_of_a_single_group_in_train_alone():
    units = np.repeat([0, 1, 2, 3, 4], [9, 1, 5, 5, 8])
    labels = np.repeat([0, 0, 1, 1, 2], [9, 1, 5, 5, 8])
    source = Arrays("x", np.zeros((28, 2, 2), np.uint8), labels, ("a", "b", "c"))
    rest, part = split(source, 0.2, units=units)
    assert set(rest.labels.tolist()) == {0, 1, 2} and set(part.labels.tolist()) == {0, 1}
    with pytest.raises(DataError, match="groups are never divided"):
        split(source, 0.2, units=labels)


def test_an_image_listed_twice_linked_or_copied_stays_on_one_side(tmp_path):
    rows = []
    for i in range(30):
        path = draw(tmp_path / f"d/{i}.png")
        rows += [(path, "ab"[i % 2])] * 2  # listed twice
        shutil.copy(path, tmp_path / f"d/copy{i}.png")
        os.symlink(path, tmp_path / f"d/link{i}.png")
        rows += [(f"d/../d/copy{i}.png", "ab"[i % 2]), (f"d/link{i}.png", "ab"[i % 2])]
    spec = table(tmp_path / "t.csv", ("path", "label"), rows)
    source = open_source(spec)
    units, repeats = independent_units(source)
    assert repeats == 90 and np.array_equal(units, np.repeat(units[::4], 4))
    packed = pack(source, tmp_path / "packed")["pattern"]
    for train in (spec, packed):
        a, b, notes = open_sets(train)
        seen, asked = number_equal_images(a, b)
        assert not set(seen) & set(asked) and len(b) == 24
        assert any("90 image(s) repeat another one" in n for n in notes)


def test_groups_that_share_an_image_stay_together(tmp_path):
    rows = [(draw(tmp_path / f"{i}.png"), "ab"[i % 2], f"g{i}") for i in range(20)]
    rows.append((rows[0][0], "a", "g1"))
    source = open_source(table(tmp_path / "t.csv", ("path", "label", "group"), rows))
    units, repeats = independent_units(source)
    assert repeats == 1 and units[0] == units[1] == units[20] and len(np.unique(units)) == 19


def test_images_and_groups_that_are_in_a_given_test_set_too_are_named(tmp_path):
    first, second = patients(tmp_path / "1"), patients(tmp_path / "2", prefix="q")
    assert not any("in train" in n for n in open_sets(first, second)[2])
    rows, borrowed = rows_of(second), rows_of(first)[:3]
    mixed = table(tmp_path / "m.csv", ("path", "label", "group"), rows + borrowed)
    notes = "\n".join(open_sets(first, mixed)[2])
    assert "3 of the 123 test images are in train too" in notes
    assert "1 group(s) are in train and in test (first 'p0')" in notes


def test_a_test_set_inside_train_is_refused_however_it_is_spelled(tmp_path):
    spec = patients(tmp_path)
    rows = rows_of(spec)
    part = table(tmp_path / "part.csv", ("path", "label"), [r[:2] for r in rows[:40]])
    for test in (part, str(tmp_path / ".." / tmp_path.name / "p.csv")):
        with pytest.raises(UsageError, match="same images"):
            open_sets(spec, test)


def test_noise_of_patients_is_not_recognised(tmp_path):
    rows = []
    for p in range(40):
        base = RNG.integers(20, 236, (8, 8, 3))
        for k in range(5):
            pixels = (base + RNG.integers(-9, 10, base.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{p}_{k}.png")
            rows.append((f"{p}_{k}.png", "ab"[p % 2], f"p{p}"))
    spec = table(tmp_path / "t.csv", ("path", "label", "group"), rows)
    assert evaluate("knn", "pixels", spec, k=(5,)).best["value"] < 0.8
    bare = table(tmp_path / "bare.csv", ("path", "label"), [r[:2] for r in rows])
    assert evaluate("knn", "pixels", bare, k=(5,)).best["value"] > 0.95


def test_every_label_another_value_is_said_as_what_it_is(tmp_path):
    paths = [draw(tmp_path / f"{i}.png") for i in range(20)]
    for name, message in (("n{}", "20 images have 20 different labels"), ("{}.37", "measurements")):
        rows = [(path, name.format(i)) for i, path in enumerate(paths)]
        with pytest.raises(DataError, match=message):
            open_sets(table(tmp_path / "t.csv", ("path", "label"), rows))

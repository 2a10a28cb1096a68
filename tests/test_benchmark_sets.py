"""The sets of benchmarks/sets are what their pages say, at tiny size."""

from __future__ import annotations

import importlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel.data.open import open_source
from nolabel.data.sources.cutouts import PACKAGES

ROOT = Path(__file__).parents[1]
STAMPS = PACKAGES["stamps"]


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.sets.{name}")


def pixels(file) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file.content)))


@pytest.mark.parametrize(("name", "shape", "classes"), [
    ("cells", (300, 300), 2), ("tissue", (150, 150, 3), 4),
])  # fmt: skip
def test_pictures_repeat_and_their_classes_alternate(module, name, shape, classes):
    made = module(name)
    first = list(made.files("train", 2 * classes, 0))
    assert [f.label for f in first] == list(made.CLASSES) * 2
    assert all(pixels(f).shape == shape and pixels(f).dtype == np.uint8 for f in first)
    again = list(made.files("train", classes, 0))  # fewer: the same pictures
    assert [f.content for f in again] == [f.content for f in first[:classes]]
    others = [next(made.files("test", 1, 0)), next(made.files("train", 1, 1))]
    assert len({f.content for f in first + others}) == 2 * classes + 2


def test_a_defect_does_not_change_the_mean_brightness_of_a_cell(module):
    made = module("cells")
    values = {False: [], True: []}
    for defective, found in values.items():
        for seed in range(12):
            image = made.picture(np.random.default_rng(seed), defective=defective)
            found.append(image.mean())
    intact, defective = (np.mean(found) for found in values.values())
    assert abs(intact - defective) < np.std(values[False])


def test_tiles_have_the_shares_of_their_classes_and_test_is_elsewhere(module):
    maps, tiles = module("maps"), module("tiles")
    y, x = np.mgrid[:400, :400]
    where = np.stack([y // 2, x // 2, 0 * x], -1)  # every pixel says where it lies
    small = [maps.Map((y // 80).astype(np.uint8), where.astype(np.float32)) for _ in range(2)]
    train = list(tiles.cut(small, "train", 100, 0))
    test = list(tiles.cut(small, "test", 50, 0))
    counts = Counter(f.label for f in train)
    assert [counts[c] for c in tiles.CLASSES] == [28, 22, 22, 14, 14]
    assert [f.content for f in tiles.cut(small, "train", 100, 0)] == [f.content for f in train]
    right = max(int(pixels(f)[..., 1].max()) for f in train)
    left = min(int(pixels(f)[..., 1].min()) for f in test)
    assert right < left and pixels(train[0]).shape == (64, 64, 3)


def test_a_map_shows_every_land_use_and_repeats(module):
    maps = module("maps")
    made, again = (maps.draw_map(np.random.default_rng(3), 400) for _ in range(2))
    assert np.array_equal(made.picture, again.picture) and np.array_equal(made.use, again.use)
    assert np.bincount(made.use.ravel(), minlength=5).min() > 0.01 * made.use.size
    assert np.isfinite(made.picture).all()


@pytest.mark.skipif(not STAMPS.folder.is_dir(), reason=f"{STAMPS.name} is not installed")
def test_photographs_are_upright_by_their_orientation(module, tmp_path):
    """Portraits are stored lying down; the reader turns them."""
    phone, files = module("phone"), module("files")
    made = list(phone.photographs("train", 8, 0, (64, 48)))
    files.write(tmp_path, made)
    images = [Image.open(io.BytesIO(f.content)) for f in made]
    assert all(image.size == (64, 48) for image in images)
    turned = [image.getexif().get(0x0112, 1) for image in images]
    assert len(set(turned)) > 1
    source = open_source(tmp_path)
    shapes = {Path(source.path(i)).stem: source.read(i).image.shape for i in range(8)}
    for i, orientation in enumerate(turned):
        upright = (48, 64, 3) if orientation in (1, 3) else (64, 48, 3)
        assert shapes[f"{i:05d}"] == upright


def test_a_written_set_is_a_labelled_folder_with_its_facts(module, tmp_path, capsys):
    command, facts = module("__main__"), tmp_path / "facts.json"
    given = ["cells", "--out", str(tmp_path / "set"), "--train", "8", "--test", "4"]
    command.main([*given, "--json", str(facts)])
    source = open_source(tmp_path / "set" / "train")
    assert source.classes == ("defective", "intact")
    assert np.bincount(source.labels).tolist() == [4, 4]
    found = json.loads(facts.read_text())["sets"]["cells"]
    assert found["test"]["images"] == 4 and found["train"]["classes"] == {
        "defective": 4,
        "intact": 4,
    }
    assert found["largest class"] == 0.5 and 0 <= found["pixels knn k=20"] <= 1
    assert "written in" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["cells"])

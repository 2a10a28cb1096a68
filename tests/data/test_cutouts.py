"""`stamps` and `clipart` are read from the folders of Debian's packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel.data.copies import number_equal_images
from nolabel.data.open import open_source
from nolabel.data.sources import cutouts
from nolabel.errors import BadImage, UsageError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A few small cut-outs of two classes, as the packages lay them out; returns their folder."""
    for name in cutouts.PACKAGES:
        package = cutouts.Package("a-package", tmp_path / "none", 1)
        monkeypatch.setitem(cutouts.PACKAGES, name, package)
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path))

    def make(which: str, names: list[str]) -> Path:
        for number, name in enumerate(names):
            pixels = np.full((6, 8, 4), number, np.uint8)
            pixels[..., 3] = 0
            pixels[2:4, 3:6, 3] = 255
            path = tmp_path / which / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return tmp_path / which

    return make


def names_of(source) -> list[str]:
    return [Path(source.path(i)).relative_to(source.root).as_posix() for i in range(len(source))]


NAMES = [f"{theme}/{kind}/{n}.png" for theme in ("animals", "plants") for kind in "ab"
         for n in range(kind == "b", 40, 2)]  # fmt: skip


def test_a_stamp_has_its_theme_description_and_mask(tree):
    folder = tree("stamps", NAMES)
    for name in NAMES:
        text = f"A thing called {name}.\nfr.utf8=Une chose.\n"
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    source = open_source("stamps")
    assert source.classes == ("animals", "plants")
    sample, name = source.read(0), names_of(source)[0]
    assert sample.text == f"A thing called {name}." and source.read_texts(np.arange(1))[0]
    assert source.classes[sample.label] == name.split("/")[0]
    assert sample.image.shape == (6, 8, 3) and sample.image[0, 0].tolist() == [255, 255, 255]
    assert sample.mask.sum() == 6 and sample.mask[2:4, 3:6].all()
    assert sample.image[2, 3].tolist() == [NAMES.index(name)] * 3


def test_the_splits_share_no_name_and_do_not_depend_on_what_else_is_there(tree):
    tree("clipart", NAMES)
    train, test = (names_of(open_source(f"clipart:{split}")) for split in ("train", "test"))
    assert sorted(train + test) == sorted(NAMES)
    assert not {Path(n).name for n in train} & {Path(n).name for n in test}
    assert 0.1 < len(test) / len(NAMES) < 0.3
    tree("clipart", ["more/c/new.png", *(f"more/copies/{Path(n).name}" for n in test)])
    again = names_of(open_source("clipart:train"))
    assert set(train) <= set(again) <= {*train, "more/c/new.png"}


def test_the_title_of_clip_art_is_its_name_in_words(tree):
    names = ["animals/birds/grey-heron_02.png", "animals/birds/007.png"]
    tree("clipart", names)
    texts = {}
    for split in ("train", "test"):
        source = open_source(f"clipart:{split}")
        texts |= {name: source.read_text(i) for i, name in enumerate(names_of(source))}
    assert texts == {names[0]: "grey heron", names[1]: "007"}


def test_enormous_pictures_are_left_out_and_counted(tree):
    folder = tree("clipart", NAMES)
    name = names_of(open_source("clipart"))[0]
    Image.new("1", (8000, 4000)).save(folder / name)
    source = open_source("clipart")
    assert name not in names_of(source) and len(source.labels) == len(source)
    assert source.notes == ("clipart:train: left out because they have more than 10 megapixels: 1",)


def test_cut_outs_are_files_so_that_equal_ones_are_found(tree):
    folder = tree("clipart", NAMES)
    source = open_source("clipart")
    first, second = (Path(source.path(i)) for i in (0, 1))
    second.write_bytes(first.read_bytes())
    (numbers,) = number_equal_images(source)
    assert numbers[0] == numbers[1] != numbers[2]
    first.write_bytes(b"not an image")
    with pytest.raises(BadImage, match="not an image"):
        source.read(0)
    assert folder.is_dir()


def test_a_mirrored_stamp_belongs_to_its_original_and_a_link_is_no_second_picture(tree):
    names = [f"town/{n}{end}.png" for n in range(20) for end in ("", "_mirror")]
    folder = tree("stamps", names)
    for n in range(20):
        (folder / f"town/{n}.txt").write_text(f"House {n}.\n")
    (folder / "linked").mkdir()
    (folder / "linked" / "again.png").symlink_to(folder / names[0])
    for split in ("train", "test"):
        source = open_source(f"stamps:{split}")
        shown = [Path(n).stem for n in names_of(source)]
        assert {n.removesuffix("_mirror") for n in shown if "_" in n} == {*shown} - {
            n for n in shown if "_" in n
        }
        expected = [f"House {n.removesuffix('_mirror')}." for n in shown]
        assert list(source.read_texts(np.arange(len(source)))) == expected
        assert "again" not in shown


@pytest.mark.parametrize("name", ["stamps", "clipart"])
def test_a_missing_package_is_named(tree, name, tmp_path):
    with pytest.raises(UsageError, match=f"package a-package .* folder .*{tmp_path}/{name}"):
        open_source(name)


@pytest.mark.parametrize(("name", "images", "label", "text"), [
    ("stamps", 796, "animals", "gull"), ("clipart", 6883, "animals", "dog"),
])  # fmt: skip
def test_the_real_packages_are_read(name, images, label, text):
    if not cutouts.PACKAGES[name].folder.is_dir():
        pytest.skip(f"the package {cutouts.PACKAGES[name].name} is not installed")
    train, test = open_source(name), open_source(f"{name}:test")
    assert len(train) + len(test) == images and 0.15 < len(test) / images < 0.25
    assert train.classes == test.classes and label in train.classes
    assert set(np.unique(test.labels)) == set(np.unique(train.labels))
    shown = [
        s.read_texts(np.flatnonzero(s.labels == s.classes.index(label))) for s in (train, test)
    ]
    assert any(text in t.lower() for t in shown[0] + shown[1])
    sample = train.read(0)
    assert sample.image.shape[:2] == sample.mask.shape and 0 < sample.mask.mean() <= 1

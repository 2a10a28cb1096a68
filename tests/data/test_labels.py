"""Labels are classes, or it is said why they are none; files and folders left out are told."""

from __future__ import annotations

import csv
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

import nolabel as nl
from nolabel.data.labels import clean_name, read_labels
from nolabel.data.open import open_source
from nolabel.data.source import require_labels
from nolabel.data.sources._bands import read_bands
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.protocols._scores import accuracy_rows, match_labels


def label(*values):
    return read_labels(values, lambda i: f"row {i}")


def draw(path, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(path.name), 5, 9)).save(path)
    return path


def test_names_and_integers_are_classes_in_their_order():
    assert label("b", "a", "b")[:2][0] == ("a", "b")
    assert label("10", "9", "-1").classes == ("-1", "9", "10")
    assert label("1.0", "2.0", "10.0").classes == ("1", "2", "10")
    assert label(*["0.5", "1.5"] * 4).classes == ("0.5", "1.5")
    assert label("New York, NY", "Albany, NY", "Austin, TX").labels is not None
    assert label("--5", "1" * 5000).labels is not None


@pytest.mark.parametrize("empty", ["", "nan", "NaN", "NULL", "None", "N/A", "<NA>"])
def test_missing_labels_are_named_by_their_row(empty):
    found = label("a", "b", empty, "a")
    assert found.labels is None and "1 of 4 labels are missing, first in row 2" in found.why


@pytest.mark.parametrize("values", [
    ("['a', 'b']", "['a']"), ("a|b", "a", "c"), ("a;b", "b;c"), ("a,b", "a", "b"),
])  # fmt: skip
def test_several_labels_an_image_are_refused(values):
    assert label(*values).labels is None and "several labels" in label(*values).why


def test_measurements_are_no_classes():
    found = label(*(f"{i * 0.37:.2f}" for i in range(40)))
    assert found.labels is None and "40 different numbers for 40 images" in found.why


def test_spellings_that_look_the_same_are_one_class():
    names = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    assert label(*names, " caf\u00e9\u200b", "tea").classes == ("caf\u00e9", "tea")
    assert clean_name("a\u00a0 b ") == "a b"
    assert "'Cat' and 'cat'" in label("Cat", "cat", "dog").notes[0]


def test_classes_of_train_and_test_match_in_any_unicode_form(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("caf\u00e9", "na\u00efve"):
            draw(tmp_path / part / unicodedata.normalize(form, name) / "1.png")
    train, test = (open_source(tmp_path / part) for part in ("train", "test"))
    assert match_labels(train, test).tolist() == [0, 1]
    for name in ("Cat", "dog"):
        draw(tmp_path / "upper" / name / "1.png")
        draw(tmp_path / "lower" / name.lower() / "1.png")
    with pytest.raises(DataError, match="'cat' and 'Cat' differ in spelling only"):
        match_labels(open_source(tmp_path / "upper"), open_source(tmp_path / "lower"))


@pytest.mark.parametrize(("folders", "message"), [
    (("train/a", "train/b", "val/a", "val/b"), "look like splits.*--train .*train --test .*val"),
    (("Training/a", "test_set/a", "extra/b"), "look like splits"),
    (("images", "masks"), "look like parts"),
])  # fmt: skip
def test_folders_of_splits_and_of_masks_are_no_classes(tmp_path, folders, message):
    for folder in folders:
        draw(tmp_path / folder / "1.png")
    source = open_source(tmp_path)
    assert source.labels is None
    with pytest.raises(DataError, match=message):
        require_labels(source)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus", "car"):
        draw(tmp_path / name / "1.png")
    assert open_source(tmp_path).classes == ("bus", "car", "train")


def test_a_stray_image_is_named_as_the_reason(tmp_path):
    for name in ("a/1.png", "b/1.png", "cover.png"):
        draw(tmp_path / name)
    with pytest.raises(DataError, match="1 of the 3 images lie directly.*cover.png"):
        require_labels(open_source(tmp_path))


def test_pictures_in_other_formats_are_counted(tmp_path):
    draw(tmp_path / "a.png")
    for i in range(3):
        (tmp_path / f"{i}.HEIC").write_bytes(b"x")
    (tmp_path / "b.nef").write_bytes(b"x")
    (tmp_path / "README").write_text("x")
    (note,) = open_source(tmp_path).notes
    assert "4 files" in note and "3 .heic, 1 .nef" in note


def test_a_named_set_says_that_there_is_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_source("digits").notes == ()
    (tmp_path / "digits").mkdir()
    assert "--data ./digits" in open_source("digits").notes[0]


def write(path, head, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_tables_of_other_systems_find_their_files(tmp_path):
    name = "caf\u00e9"
    draw(tmp_path / "d" / f"{unicodedata.normalize('NFC', name)}.png")
    paths = {"w.csv": f"d\\{name}.png", "m.csv": f"d/{unicodedata.normalize('NFD', name)}.png"}
    for table, path in paths.items():
        source = open_source(write(tmp_path / table, ("path",), [(path,)]))
        assert source.read(0).image.shape == (6, 6, 3) and len(source.notes) == 1
    lost = open_source(write(tmp_path / "l.csv", ("path",), [("C:\\x\\1.png",)]))
    with pytest.raises(BadImage, match="Windows"):
        lost.read(0)


def test_tables_with_long_captions_open_quotes_and_double_columns(tmp_path):
    draw(tmp_path / "1.png")
    long = open_source(write(tmp_path / "t.csv", ("path", "text"), [("1.png", "word " * 40_000)]))
    assert len(long.read_text(0)) == 199_999
    (tmp_path / "q.csv").write_text('path,text\n1.png,"open\n' + "1.png,x\n" * 300)
    with pytest.raises(DataError, match="closing double quote"):
        open_source(tmp_path / "q.csv")
    with pytest.raises(UsageError, match="'label' 2 times"):
        open_source(write(tmp_path / "d.csv", ("path", "label", "Label"), [("1.png", "a", "b")]))


def test_rows_without_a_group_are_groups_of_their_own(tmp_path):
    rows = [("1.png", "a", "p"), ("2.png", "b", ""), ("3.png", "a", "p"), ("4.png", "b", "")]
    source = open_source(write(tmp_path / "t.csv", ("path", "label", "group"), rows))
    assert len(set(source.groups.tolist())) == 3 and "2 row(s) have no group" in source.notes[0]


def test_accuracies_stand_beside_those_of_the_largest_class():
    truth = torch.tensor([0] * 95 + [1] * 5)
    (row,) = accuracy_rows("x", torch.zeros(100, 1, dtype=torch.long), truth, 2)
    assert row["value"] == row["chance"] == 0.95 and row["balanced"] == 0.5


def test_channels_first_are_refused_instead_of_read_as_grey_images():
    encoder = nl.load("random:vit_pico", image_size=32)
    x = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for images in (x, x[None], x.numpy()):
        with pytest.raises(UsageError, match="channels first"):
            encoder.embed(images)
    with pytest.raises(UsageError, match="channels first"):
        open_source(x.numpy())
    with pytest.raises(UsageError, match="counts as normalised"):
        encoder.embed(torch.full((1, 3, 32, 32), 255.0))
    assert len(encoder.embed(x.permute(1, 2, 0))) == 1
    assert len(encoder.embed(x[None].permute(0, 2, 3, 1))) == 1


def test_32_bit_files_keep_their_values_or_are_refused(tmp_path):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray((values * 65535).astype(np.int32)).save(tmp_path / "i.tif")
    assert np.array_equal(read_bands(tmp_path / "i.tif", 1)[..., 0], (values * 65535).astype("u2"))
    Image.fromarray(values).save(tmp_path / "f.tif")
    Image.fromarray((values * 70000).astype(np.int32)).save(tmp_path / "j.tif")
    for name, reason in (("f.tif", "floating-point"), ("j.tif", "not 0 to 65535")):
        with pytest.raises(BadImage, match=reason):
            read_bands(tmp_path / name, 1)

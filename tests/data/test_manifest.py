"""Lists and tables of images are read as they are written."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from nolabel.data._cache import cache_folder
from nolabel.data._strings import StringTable
from nolabel.data.sources.manifest import Manifest
from nolabel.errors import BadImage, DataError, UsageError


@pytest.fixture(autouse=True)
def separate_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    """Five grey images; image i has the value 40 i."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (4, 4), (40 * i,) * 3).save(folder / f"{i}.png")
    return folder


def value(source, i):
    return int(source.read(i).image[0, 0, 0])


def test_a_list_keeps_its_order_and_paths_are_relative_to_its_folder(pictures, monkeypatch):
    file = pictures / "list.txt"
    file.write_text("3.png\n\n 0.png \n../pictures/4.png\n" + str(pictures / "1.png") + "\n")
    monkeypatch.chdir(pictures.parent)
    source = Manifest("pictures/list.txt")
    assert [value(source, i) for i in range(len(source))] == [120, 0, 160, 40]
    assert source.labels is None


def test_a_table_has_labels_texts_and_groups(pictures):
    file = pictures / "table.csv"
    file.write_text(
        'path,other,label,text,group\n2.png,x,dog,"a dog, black",p2\n0.png,x,cat,a cat,p1\n'
        "1.png,x,dog,,p2\n"
    )
    source = Manifest(file)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert source.groups is not None and source.groups.tolist() == [1, 0, 1]
    assert [source.read(i).text for i in range(3)] == ["a dog, black", "a cat", ""]
    assert source.read(0).label == 1


def test_integer_classes_are_in_numeric_order(pictures):
    file = pictures / "table.csv"
    file.write_text("path,label\n0.png,10\n1.png,9\n2.png,-1\n")
    assert Manifest(file).classes == ("-1", "9", "10")


def test_labels_are_used_only_when_every_row_has_one(pictures):
    file = pictures / "table.csv"
    file.write_text("path,label\n0.png,a\n1.png,\n")
    assert Manifest(file).labels is None


def test_tsv_and_parquet_are_read_like_csv(pictures):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    (pictures / "t.tsv").write_text("path\tlabel\ttext\n2.png\t7\ttwo\n0.png\t5\tnought\n")
    columns = {"path": ["2.png", "0.png"], "label": [7, 5], "text": ["two", "nought"]}
    parquet.write_table(pyarrow.table(columns), pictures / "t.parquet")
    for name in ("t.tsv", "t.parquet"):
        source = Manifest(pictures / name)
        assert [value(source, i) for i in (0, 1)] == [80, 0]
        assert source.classes == ("5", "7")
        assert source.read(0).text == "two"


def test_a_missing_file_is_a_bad_image_with_its_path(pictures):
    (pictures / "list.txt").write_text("nothing.png\n")
    with pytest.raises(BadImage, match=r"nothing\.png: no such file"):
        Manifest(pictures / "list.txt").read(0)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("t.csv", "paths,label\n0.png,1\n", UsageError, "Did you mean 'paths'"),
        ("t.csv", "path,label\n0.png\n", DataError, "row 2: 1 fields"),
        ("t.csv", "path,label\n,1\n", DataError, "row 2: the path is empty"),
        ("t.csv", "path\n", DataError, "lists no image"),
        ("t.txt", "\n\n", DataError, "lists no image"),
        ("t.csv", b"path\n\xff\xfe.png\n", DataError, "UTF-8"),
    ],
)
def test_an_incomplete_list_is_refused_with_a_hint(name, content, error, message, tmp_path):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(error, match=message):
        Manifest(tmp_path / name)


def test_a_list_is_cached_until_the_file_changes(pictures, monkeypatch):
    from nolabel.data.sources import manifest

    file = pictures / "table.csv"
    file.write_text("path,label\n0.png,a\n1.png,b\n")
    first = Manifest(file)
    monkeypatch.setattr(manifest, "_read_columns", lambda _: pytest.fail("read again"))
    again = Manifest(file)
    assert list(again.paths) == list(first.paths) and again.classes == first.classes
    np.testing.assert_array_equal(again.labels, first.labels)
    monkeypatch.undo()
    monkeypatch.setenv("NOLABEL_CACHE", str(pictures.parent / "cache"))
    file.write_text("path,label\n2.png,a\n1.png,b\n3.png,b\n")
    os.utime(file, ns=(1, 1))
    assert len(Manifest(file)) == 3


def test_a_damaged_cache_is_ignored(pictures):
    file = pictures / "list.txt"
    file.write_text("0.png\n")
    Manifest(file)
    (kept,) = cache_folder().iterdir()
    for damage in (b"", b"PK\x03\x04 nonsense", kept.read_bytes()[:-40]):
        kept.write_bytes(damage)
        assert list(Manifest(file).paths) == ["0.png"]


def test_an_unwritable_cache_folder_is_no_error(pictures, monkeypatch):
    (pictures / "file").write_text("")
    monkeypatch.setenv("NOLABEL_CACHE", str(pictures / "file" / "below"))
    (pictures / "list.txt").write_text("0.png\n")
    assert len(Manifest(pictures / "list.txt")) == 1


def test_a_string_table_returns_its_strings():
    given = ["", "a", "später/ß.png", "\udcff raw byte", "x" * 1000, ""]
    packed = StringTable.from_strings(given)
    assert list(packed) == given
    assert [packed[-1], packed[2]] == ["", given[2]]
    with pytest.raises(IndexError):
        packed[6]


def test_a_table_of_the_same_size_and_time_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "t.csv"
    for rows, labels in (("0.png,a\n1.png,b\n", [0, 1]), ("0.png,b\n1.png,a\n", [1, 0])):
        table.write_text("path,label\n" + rows)
        os.utime(table, (0, 0))
        assert Manifest(table).labels.tolist() == labels

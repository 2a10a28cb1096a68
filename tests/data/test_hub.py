"""Data sets in the Hub's layout, read from a local folder without network access."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from nolabel.data.open import open_source
from nolabel.errors import BadImage, DataError, UsageError

datasets = pytest.importorskip("datasets")
COLOURS = [(i * 20, 5, 9) for i in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two splits; the first has a damaged image and an empty cell."""
    where = tmp_path_factory.mktemp("set") / "data"
    where.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", where.parent / "cache")
        datasets.disable_progress_bars()
        cells = [{"bytes": _png(c), "path": None} for c in COLOURS]
        cells[3] = {"bytes": b"<html>", "path": None}
        cells[4] = None
        features = datasets.Features(
            {
                "id": datasets.Value("int64"),
                "picture": datasets.Image(),
                "caption": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["odd", "even"]),
            }
        )
        rows = {
            "id": list(range(8)),
            "picture": cells,
            "caption": [f"number {i}" for i in range(8)],
            "label": [i % 2 for i in range(8)],
        }
        whole = datasets.Dataset.from_dict(rows, features=features)
        whole.to_parquet(where / "train-00000-of-00001.parquet")
        whole.select([5, 6]).to_parquet(where / "test-00000-of-00001.parquet")
        yield str(where.parent)


def _png(colour) -> bytes:
    from io import BytesIO

    file = BytesIO()
    Image.new("RGB", (6, 5), colour).save(file, "PNG")
    return file.getvalue()


def test_images_labels_and_texts_are_found(folder):
    source = open_source(f"hf:{folder}")
    assert len(source) == 8 and source.classes == ("odd", "even")
    assert source.labels.tolist() == [0, 1] * 4
    sample = source.read(6)
    assert sample.image.shape == (5, 6, 3) and tuple(sample.image[0, 0]) == COLOURS[6]
    assert (sample.label, sample.text) == (0, "number 6")
    assert source.read_text(2) == "number 2"


def test_splits_are_named_after_a_colon(folder):
    test = open_source(f"hf:{folder}:test")
    assert len(test) == 2 and tuple(test.read(0).image[0, 0]) == COLOURS[5]
    assert len(open_source(f"hf:{folder}", split_default="test")) == 2
    with pytest.raises(UsageError, match="nope"):
        open_source(f"hf:{folder}:nope")


def test_bad_cells_are_bad_images_with_their_row(folder):
    source = open_source(f"hf:{folder}")
    for i, reason in ((3, "HTML"), (4, "empty cell")):
        with pytest.raises(BadImage, match=reason) as caught:
            source.read(i)
        assert caught.value.path.endswith(f"[{i}]")


def test_workers_read_it_too(folder, same_in_workers):
    source = open_source(f"hf:{folder}")
    here = same_in_workers(source, batch_size=4, steps=4)
    assert {p for b in here for p, _ in b.skipped} == {source.path(3), source.path(4)}


def test_sets_without_images_and_missing_sets_are_named(folder, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    words = datasets.Dataset.from_dict({"words": ["a", "b"]})
    words.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(UsageError, match="no column of images; it has: words"):
        open_source(f"hf:{tmp_path}")

    def away(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", away)
    with pytest.raises(DataError, match="owner/name"):
        open_source("hf:owner/name")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"nolabel\[hf\]"):
        open_source("hf:owner/name")


def _save(where, columns, features):
    where.mkdir()
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    whole.to_parquet(where / "train-00000-of-00001.parquet")
    return f"hf:{where}"


def test_plain_columns_are_labels_and_others_say_why_not(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [{"bytes": _png(c), "path": None} for c in COLOURS]
    kinds = {
        "int64": (datasets.Value("int64"), [0, 1] * 4, ("0", "1")),
        "string": (datasets.Value("string"), ["dog", "cat"] * 4, ("cat", "dog")),
        "missing": (datasets.Value("string"), [None, "cat"] * 4, "row 0"),
        "lists": (datasets.Sequence(datasets.Value("int64")), [[0], [0, 1]] * 4, "several values"),
    }
    for name, (feature, values, right) in kinds.items():
        spec = _save(
            tmp_path / name,
            {"image": images, "label": values, "group": [str(i // 2) for i in range(8)]},
            {"image": datasets.Image(), "label": feature, "group": datasets.Value("string")},
        )
        source = open_source(spec)
        assert source.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        if isinstance(right, tuple):
            assert source.classes == right
        else:
            assert source.labels is None and right in source.unlabelled


def test_the_column_of_images_is_chosen_by_name_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    both = [[{"bytes": _png((c, 0, 0)), "path": None}] * 2 for c in (10, 200)]

    def save(*names):
        features = dict.fromkeys(names, datasets.Image())
        return _save(tmp_path / "_".join(names), dict(zip(names, both, strict=True)), features)

    source = open_source(save("annotation", "image"))
    assert source.read(0).image[0, 0, 0] == 200 and "not annotation" in source.notes[0]
    assert open_source(save("mask", "before")).read(0).image[0, 0, 0] == 200
    spec = save("before", "after")
    with pytest.raises(UsageError, match="Choose one"):
        open_source(spec)
    assert open_source(f"{spec}:train:after").read(0).image[0, 0, 0] == 200

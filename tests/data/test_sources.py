"""Sources are opened by name, or an error says what to do."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel.data.open import DATASETS, open_source
from nolabel.data.source import Source, Subset, require_labels
from nolabel.data.sources import builtin
from nolabel.data.sources.arrays import Arrays
from nolabel.data.sources.items import Items
from nolabel.data.split import split
from nolabel.errors import BadImage, DataError, UsageError

has_fashion = pytest.mark.skipif(
    not (builtin.SYSTEM_FOLDER / "train-images-idx3-ubyte.gz").exists(),
    reason="the package dataset-fashion-mnist is not installed",
)


def _picture(path: Path, colour: tuple[int, int, int] = (1, 2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path, "PNG")
    return path


def _labelled(count: int = 40, kinds: int = 4) -> Arrays:
    pixels = np.arange(count, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    labels = np.arange(count, dtype=np.int64) % kinds
    return Arrays("toy", pixels, labels, tuple("abcdefgh"[:kinds]))


# Folders


def test_a_folder_is_listed_recursively_in_sorted_order(tmp_path):
    for name in ("b.png", "a/2.PNG", "a/1.jpeg", "a/deep/0.png", "c.webp"):
        _picture(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", ".git/x.png", "a/._1.jpeg", "d.pdf"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    source = open_source(tmp_path)
    names = [Path(source.path(i)).relative_to(tmp_path).as_posix() for i in range(len(source))]
    assert names == ["a/1.jpeg", "a/2.PNG", "a/deep/0.png", "b.png", "c.webp"]
    assert source.labels is None and source.classes == ()
    assert isinstance(source, Source) and not source.in_memory


def test_subfolder_names_are_labels_when_every_image_has_one(tmp_path):
    for name in ("dog/1.png", "dog/more/2.png", "ant/1.png", "cat/x.png"):
        _picture(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("ant", "cat", "dog")
    assert require_labels(source).tolist() == [0, 1, 2, 2]
    sample = source.read(1)
    assert sample.label == 1 and sample.image.shape == (3, 4, 3)


def test_one_image_outside_the_subfolders_means_no_labels(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "loose.png"):
        _picture(tmp_path / name)
    source = open_source(tmp_path)
    assert source.labels is None and source.read(0).label is None
    with pytest.raises(DataError, match="has no labels"):
        require_labels(source)


def test_labels_of_one_class_are_refused(tmp_path):
    _picture(tmp_path / "images" / "1.png")
    with pytest.raises(DataError, match="one class only \\('images'\\).*folder above or below"):
        require_labels(open_source(tmp_path))


def test_links_are_followed_but_cycles_end(tmp_path):
    _picture(tmp_path / "real" / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert len(open_source(tmp_path / "data")) == 1


def test_a_bad_file_is_found_when_it_is_read_not_when_it_is_listed(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    source = open_source(tmp_path)
    with pytest.raises(BadImage) as caught:
        source.read(0)
    assert caught.value.path == str(tmp_path / "bad.jpg")


def test_listing_many_files_is_quick(tmp_path):
    for kind in range(10):
        (tmp_path / str(kind)).mkdir()
        for i in range(1000):
            (tmp_path / str(kind) / f"{i}.jpg").touch()
    start = time.perf_counter()
    source = open_source(tmp_path)
    assert time.perf_counter() - start < 0.5  # 60,000 take about 0.1 s
    assert len(source) == 10_000 and len(source.classes) == 10


# Errors


def test_a_missing_folder_names_a_near_one(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="Did you mean '.*/photos'"):
        open_source(tmp_path / "photo")
    with pytest.raises(UsageError, match="missing from '.*' on"):
        open_source(tmp_path / "nowhere" / "photos")


def test_a_mistyped_set_names_the_right_one():
    with pytest.raises(
        UsageError, match="Did you mean 'digits'.*Named sets: creatures, scenes, digits"
    ):
        open_source("digit")
    with pytest.raises(UsageError, match="Did you mean 'fashion-mnist:test'"):
        open_source("fashion-mnst:test")


def test_an_unknown_split_lists_the_splits():
    with pytest.raises(UsageError, match="split of digits: 'val'.*Allowed: train, test"):
        open_source("digits:val")


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(DataError, match="no files at all.*\\.jpg"):
        open_source(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.doc").touch()
    with pytest.raises(DataError, match="2 other files.*\\.png"):
        open_source(tmp_path)


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(UsageError, match="neither a folder nor a list of images"):
        open_source(_picture(tmp_path / "a.png"))


@pytest.mark.parametrize("wrong", [None, 5, ""])
def test_other_types_of_data_are_refused(wrong):
    with pytest.raises(UsageError, match="a named set"):
        open_source(wrong)


def test_a_named_set_wins_over_a_folder_unless_a_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _picture(tmp_path / "digits" / "a.png")
    assert len(open_source("digits")) == 1438
    assert len(open_source("./digits")) == 1


# In memory


def test_a_list_mixes_paths_images_and_arrays(tmp_path):
    path = _picture(tmp_path / "a.png", (9, 8, 7))
    array = np.full((5, 6, 3), 4, np.uint8)
    source = open_source([path, str(path), Image.new("L", (2, 2), 7), array, array[..., 0]])
    assert len(source) == 5 and source.labels is None
    assert source.read(0).image[0, 0].tolist() == [9, 8, 7]
    assert source.read(2).image[0, 0].tolist() == [7, 7, 7]
    assert source.read(4).image.shape == (5, 6, 3)
    assert source.path(1) == str(path) and source.path(3) == "list[3]"


def test_reading_an_array_gives_a_copy():
    array = np.zeros((2, 2, 3), np.uint8)
    open_source([array]).read(0).image[:] = 9
    assert array.max() == 0


def test_items_that_are_no_images_are_named():
    with pytest.raises(UsageError, match="Item 1 of the list is an array float32 \\[2, 2, 3\\]"):
        open_source(["a.png", np.zeros((2, 2, 3), np.float32)])
    with pytest.raises(UsageError, match="Item 0 of the list is int"):
        Items([3])


def test_a_bad_file_in_a_list_is_named_by_its_path(tmp_path):
    with pytest.raises(BadImage, match=r"missing\.png: no such file"):
        open_source([tmp_path / "missing.png"]).read(0)


def test_an_array_of_images_is_a_source_and_a_source_stays_itself():
    source = open_source(np.zeros((3, 4, 5, 3), np.uint8))
    assert len(source) == 3 and source.images(np.array([2, 0])).shape == (2, 4, 5, 3)
    assert open_source(source) is source
    with pytest.raises(UsageError, match="must be uint8"):
        open_source(np.zeros((3, 4, 5, 3)))


def test_single_reads_and_batches_are_the_same():
    source = _labelled()
    indices = np.array([5, 0, 5, 39])
    together = source.images(indices)
    for row, i in zip(together, indices, strict=True):
        np.testing.assert_array_equal(row, source.read(int(i)).image)


def test_a_subset_has_the_images_of_its_source():
    source = _labelled()
    part = Subset(source, [7, 3, 3])
    assert len(part) == 3 and part.labels.tolist() == [3, 3, 3] and part.path(0) == "toy[7]"
    np.testing.assert_array_equal(part.images(np.array([1, 0])), source.images(np.array([3, 7])))
    nested = Subset(part, [2])
    np.testing.assert_array_equal(nested.read(0).image, source.read(3).image)
    with pytest.raises(UsageError, match="reaches past its 40 images"):
        Subset(source, [40])
    one_by_one = Subset(Items([np.zeros((2, 2, 3), np.uint8)]), [0])
    assert not one_by_one.in_memory and one_by_one.labels is None


def test_a_split_is_stratified_disjoint_and_repeatable():
    source = _labelled(count=43, kinds=4)
    rest, part = split(source, 0.25, seed=3)
    together = np.concatenate([rest.indices, part.indices])
    assert np.array_equal(np.sort(together), np.arange(43))
    assert np.bincount(part.labels).tolist() == [3, 3, 3, 2]
    again, other = split(source, 0.25, seed=3)[1], split(source, 0.25, seed=4)[1]
    assert np.array_equal(part.indices, again.indices)
    assert not np.array_equal(part.indices, other.indices)


def test_every_class_of_two_is_in_both_parts_of_a_split():
    source = Arrays("toy", np.zeros((5, 2, 2), np.uint8), np.array([0, 0, 1, 1, 2]), tuple("abc"))
    rest, part = split(source, 0.01)
    assert sorted(rest.labels) == [0, 1, 2] and sorted(part.labels) == [0, 1]
    rest, part = split(source, 0.99)
    assert sorted(rest.labels) == [0, 1, 2] and sorted(part.labels) == [0, 1]
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(source, 1.0)


# Named sets


def test_the_table_of_names_needs_no_heavy_import():
    code = (
        "import sys, nolabel.data.open as s;"
        "assert [n.name for n in s.DATASETS.values()], s;"
        "print(*{'torch', 'torchvision', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_named_set_has_a_description_and_splits():
    for named in DATASETS.values():
        assert named.description and set(named.splits) == {"train", "test"}


def test_digits_have_their_sizes_and_both_splits_all_classes():
    train, test = open_source("digits"), open_source("digits:test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.images(np.arange(2)).shape == (2, 8, 8, 3)
    assert train.pixels.max() == 255 and train.pixels.dtype == np.uint8
    for source in (train, test):
        assert np.unique(require_labels(source)).tolist() == list(range(10))
        assert source.classes[3] == "3"
    assert open_source("digits", split_default="test").name == "digits:test"


def test_creatures_are_rendered_at_the_requested_size():
    assert open_source("creatures").read(0).image.shape == (32, 32, 3)
    source = open_source("creatures:test", image_size=48)
    assert source.images(np.arange(2)).shape == (2, 48, 48, 3)
    assert isinstance(source, Source) and source.in_memory
    assert len(require_labels(source)) == len(source)


@has_fashion
def test_fashion_mnist_has_its_sizes():
    train, test = open_source("fashion-mnist"), open_source("fashion-mnist:test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.images(np.array([0, 59_999])).shape == (2, 28, 28, 3)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert train.classes[train.labels[0]] == "ankle boot"  # the first image is known


def _idx(magic: int, values: np.ndarray) -> bytes:
    return np.array([magic, *values.shape], ">u4").tobytes() + values.astype(np.uint8).tobytes()


def test_idx_files_are_read_plain_or_gzipped(tmp_path):
    values = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(_idx(0x0803, values))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(_idx(0x0803, values)))
    for name in ("plain", "packed.gz"):
        np.testing.assert_array_equal(builtin.read_idx(tmp_path / name, 0x0803), values)


def test_damaged_idx_files_are_refused(tmp_path):
    good = _idx(0x0803, np.zeros((2, 3, 4)))
    damaged = {
        "short": good[:-1],
        "magic": _idx(0x0801, np.zeros(4)),
        "empty": b"",
        "cut.gz": gzip.compress(good)[:-9],
        "not.gz": b"\x1f\x8b nonsense",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="Fetch it again"):
            builtin.read_idx(tmp_path / name, 0x0803)
    with pytest.raises(DataError, match="cannot be read"):
        builtin.read_idx(tmp_path / "missing", 0x0803)


def test_missing_fashion_mnist_names_the_package_and_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "SYSTEM_FOLDER", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", None)  # as in a service without a terminal
    with pytest.raises(UsageError, match="dataset-fashion-mnist, or add --download"):
        open_source("fashion-mnist")


def test_an_earlier_download_is_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "SYSTEM_FOLDER", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    raw = tmp_path / "nolabel" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(_idx(0x0803, np.zeros((3, 28, 28))))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(_idx(0x0801, np.arange(3)))
    assert len(open_source("fashion-mnist:test")) == 3
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(0x0801, np.arange(2)))
    with pytest.raises(DataError, match="do not belong together"):
        open_source("fashion-mnist:test")


def test_the_cache_folder_follows_the_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert builtin.cache_folder() == tmp_path / "nolabel"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert builtin.cache_folder() == Path.home() / ".cache" / "nolabel"


# cifar10 and emoji


def _cifar_files(folder: Path, rows: int = 3) -> np.ndarray:
    """The six files of the binary version, small; returns what they hold, [6, rows, 3073]."""
    content = np.random.default_rng(0).integers(0, 256, (6, rows, 3073), np.uint8)
    content[..., 0] %= 10
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, content, strict=True):
        (folder / name).write_bytes(part.tobytes())
    return content


def test_cifar10_is_read_from_the_version_without_pickles(tmp_path, monkeypatch):
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path))
    content = _cifar_files(tmp_path / "cifar-10-batches-bin")
    train, test = open_source("cifar10"), open_source("cifar10:test")
    assert (len(train), len(test)) == (15, 3)
    first = content[0, 0]
    assert train.labels[0] == first[0] and train.classes[3] == "cat"
    assert train.read(0).image[1, 2].tolist() == [first[1 + c * 1024 + 34] for c in range(3)]
    assert np.array_equal(test.labels, content[5, :, 0])


def test_damaged_or_missing_cifar10_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="--download"):
        open_source("cifar10")
    _cifar_files(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(DataError, match="fetch it again"):
        open_source("cifar10:test")


def test_emoji_have_names_and_masks_and_splits_that_share_nothing():
    train, test = open_source("emoji"), open_source("emoji:test")
    assert len(train) + len(test) == 3953 and 0.15 < len(test) / 3953 < 0.25
    source = train if "grinning face" in train.texts else test
    at = source.texts.index("grinning face")
    sample = source.read(at)
    assert sample.image.shape == (72, 72, 3) and sample.text == "grinning face"
    assert sample.mask.shape == (72, 72) and set(np.unique(sample.mask)) == {0, 1}
    assert sample.image[0, 0].tolist() == [255, 255, 255] and sample.mask[0, 0] == 0
    assert sample.mask[36, 36] == 1 and sample.image[36, 36].tolist() != [255, 255, 255]
    assert np.array_equal(source.images(np.array([at]))[0], sample.image)

    def without_skin(source):
        return {t.partition(": ")[0] if "skin tone" in t else t for t in source.texts}

    tones = {t.partition(": ")[0] for s in (train, test) for t in s.texts if "skin tone" in t}
    assert not (without_skin(train) & tones) & (without_skin(test) & tones)


def test_emoji_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(UsageError, match=r"nolabel\[emoji\]"):
        open_source("emoji")

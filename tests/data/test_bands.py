"""Images of any number of channels, of 8 or 16 bits, are read without conversion."""

from __future__ import annotations

import os
import pickle
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nolabel.data.open import open_source
from nolabel.data.source import Subset
from nolabel.data.sources._bands import read_bands, to_rgb8
from nolabel.data.sources._decode import read_image
from nolabel.data.sources.arrays import Arrays
from nolabel.data.statistics import measure_statistics
from nolabel.errors import BadImage, DataError, UsageError

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (20, 30), np.uint16)


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    file = BytesIO()
    if kind == "NPY":
        np.save(file, array)
    else:
        Image.fromarray(array, mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_every_bit(kind):
    pixels = read_bands(encoded(DEEP, kind), 1)
    assert pixels.dtype == np.uint16 and np.array_equal(pixels[..., 0], DEEP)


def test_colour_is_converted_to_grey_for_one_channel():
    rgb = RNG.integers(0, 256, (8, 9, 3), np.uint8)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    assert np.array_equal(read_bands(encoded(rgb), 1)[..., 0], grey)
    assert np.array_equal(read_bands(encoded(grey), 1)[..., 0], grey)


def test_transparent_pixels_are_white_for_one_channel_too():
    """As for three: what lies under them is not part of the picture."""
    rgba = np.full((2, 3, 4), 200, np.uint8)
    rgba[..., 3] = [0, 255, 128]
    with_key = BytesIO()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 10, 10, 90, 90, 90])
    palette.putdata([0, 1])
    palette.save(with_key, "PNG", transparency=0)
    for data in (encoded(rgba), encoded(rgba[..., [0, 3]], mode="LA")):
        white, opaque, half = read_bands(data, 1)[0, :, 0].tolist()
        assert (white, opaque) == (255, 200)
        assert 226 <= half <= 229
    assert read_bands(with_key.getvalue(), 1).ravel().tolist() == [255, 90]


def test_four_channels_are_read_unchanged():
    rgba = RNG.integers(0, 256, (8, 9, 4), np.uint8)
    assert np.array_equal(read_bands(encoded(rgba), 4), rgba)
    assert read_bands(encoded(rgba[..., :3]), 3).shape == (8, 9, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_arrays_hold_any_number_of_channels(dtype, channels):
    array = RNG.integers(0, np.iinfo(dtype).max, (8, 9, channels), dtype)
    assert np.array_equal(read_bands(encoded(array, "NPY"), channels), array)


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (encoded(np.zeros((4, 4, 3), np.uint8)), 4, "has 3 channels, not 4"),
        (encoded(np.zeros((4, 4, 5), np.uint8), "NPY"), 4, "has 5 channels, not 4"),
        (encoded(np.zeros((4, 4, 5), np.float32), "NPY"), 5, "float32"),
        (encoded(np.zeros((4, 4, 5), np.uint8), "NPY")[:-9], 5, "damaged array"),
        (b"", 1, "empty"),
        (b"<html>", 1, "HTML"),
    ],
)
def test_unsuitable_files_are_refused_with_what_they_are(data, channels, reason):
    with pytest.raises(BadImage, match=reason):
        read_bands(data, channels)


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    file = BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    file.write(pickle.dumps([Trap()]))
    with pytest.raises(BadImage, match="damaged array"):
        read_bands(file.getvalue(), 1)
    assert not (tmp_path / "sprung").exists()


def test_bad_paths_are_bad_images(tmp_path):
    for path in (tmp_path / "none.npy", tmp_path):
        with pytest.raises(BadImage, match="cannot be read"):
            read_bands(path, 2)


def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="not a regular file"):
        read_bands(tmp_path / "pipe.png", 1)


def test_a_damaged_picture_is_refused_whatever_its_channels():
    whole = encoded(RNG.integers(0, 256, (40, 40, 4), np.uint8))
    with pytest.raises(BadImage, match="truncated|damaged"):
        read_bands(whole[: len(whole) // 2], 4)
    with pytest.raises(BadImage, match="limit of 100 pixels"):
        read_bands(whole, 4, max_pixels=100)


def test_a_folder_lists_arrays_only_for_other_than_three_channels(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 2), np.uint16))
    Image.fromarray(DEEP).save(tmp_path / "b.png")
    assert len(open_source(tmp_path)) == 1
    source = open_source(tmp_path, channels=2)
    assert len(source) == 2 and source.read(0).image.shape == (4, 5, 2)
    assert Subset(source, [0]).channels == 2
    with pytest.raises(BadImage, match="has 1 channels, not 2"):
        source.read(1)


def test_sets_in_memory_have_their_own_channels():
    digits = open_source("digits", channels=1)
    assert digits.images(np.arange(3)).shape == (3, 8, 8, 1)
    assert digits.read(0).image.shape == (8, 8, 1)
    deep = Arrays("deep", np.zeros((2, 4, 4, 5), np.uint16), channels=5)
    assert deep.read(1).image.shape == (4, 4, 5)
    assert open_source(deep, channels=5) is deep
    with pytest.raises(UsageError, match="3 channels, not 1"):
        open_source("creatures", channels=1)
    with pytest.raises(UsageError, match="5 channels, not 3"):
        open_source(deep)


def test_statistics_are_those_of_all_pixels(tmp_path):
    arrays = RNG.integers(0, 65536, (6, 10, 12, 2)).astype(np.uint16)
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    (tmp_path / "bad.npy").write_bytes(b"no")
    mean, std = measure_statistics(open_source(tmp_path, channels=2))
    values = arrays.reshape(-1, 2) / 65535
    assert np.allclose(mean, values.mean(0), atol=1e-6)
    assert np.allclose(std, values.std(0), atol=1e-6)
    flat = Arrays("flat", np.full((2, 4, 4, 1), 7, np.uint8), channels=1)
    assert measure_statistics(flat)[1] == (0.001,)
    for i in range(6):
        (tmp_path / f"{i}.npy").unlink()
    with pytest.raises(DataError, match="None of the 1 image tried"):
        measure_statistics(open_source(tmp_path, channels=2))


def test_pixels_for_display_are_rgb_and_use_the_full_range():
    assert np.array_equal(to_rgb8(DEEP[..., None])[..., 0], to_rgb8(DEEP[..., None])[..., 2])
    dim = (DEEP // 100)[..., None]
    assert to_rgb8(dim).min() == 0 and to_rgb8(dim).max() == 255 and to_rgb8(dim).dtype == np.uint8
    rgba = RNG.integers(0, 256, (8, 9, 4), np.uint8)
    assert np.array_equal(to_rgb8(rgba), rgba[..., :3])
    assert np.array_equal(read_image(encoded(rgba[..., :3])), to_rgb8(rgba))

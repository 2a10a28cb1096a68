"""Images are decoded to upright RGB, and bad files are refused with a reason."""

from __future__ import annotations

import contextlib
import struct
import sys
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from nolabel.data.sources._decode import read_image
from nolabel.errors import BadImage

HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def upright() -> np.ndarray:
    """Four quadrants of four colours, with no symmetry; uint8 [32, 48, 3]."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:16, :24] = (200, 30, 40)
    pixels[:16, 24:] = (30, 160, 60)
    pixels[16:, :24] = (40, 60, 180)
    pixels[16:, 24:] = (230, 220, 90)
    return pixels


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _photo(width: int = 256, height: int = 192) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def _reason(source) -> str:
    with pytest.raises(BadImage) as caught:
        read_image(source)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_comes_back_exactly(upright, kind):
    pixels = read_image(_encoded(Image.fromarray(upright), kind))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, upright)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_rgb_comes_back_nearly(upright, kind):
    pixels = read_image(_encoded(Image.fromarray(upright), kind, quality=95))
    assert np.abs(pixels.astype(int) - upright).mean() < 4


def test_a_path_its_bytes_and_a_pillow_image_give_the_same_pixels(upright, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(upright).save(path)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(upright)):
        np.testing.assert_array_equal(read_image(source), upright)


def _held(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores, from the words of the EXIF standard: where the 0th row and the 0th
    column of the stored image lie in the picture as seen."""
    sides = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }
    height, width = upright.shape[:2]
    from_side = {
        "top": ("y", lambda i: i),
        "bottom": ("y", lambda i: height - 1 - i),
        "left": ("x", lambda i: i),
        "right": ("x", lambda i: width - 1 - i),
    }
    row_side, column_side = sides[orientation]
    row_axis, row_of = from_side[row_side]
    _, column_of = from_side[column_side]
    rows, columns = (height, width) if row_axis == "y" else (width, height)
    stored = np.zeros((rows, columns, 3), np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = (row_of(r), column_of(c)) if row_axis == "y" else (column_of(c), row_of(r))
            stored[r, c] = upright[y, x]
    return stored


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(upright, orientation, kind):
    stored = Image.fromarray(_held(upright, orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encoded(stored, kind, exif=exif, **options)
    np.testing.assert_array_equal(read_image(data), upright)


def test_a_rotated_jpeg_is_turned_upright(upright):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encoded(Image.fromarray(_held(upright, 6)), "JPEG", quality=95, exif=exif)
    pixels = read_image(data)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 4


def test_an_invalid_orientation_is_ignored(upright):
    exif = Image.Exif()
    exif[0x0112] = 77
    data = _encoded(Image.fromarray(upright), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(data), upright)


def test_palette_images_show_their_colours(upright):
    image = Image.fromarray(upright).quantize(8)
    assert image.mode == "P"
    pixels = read_image(_encoded(image, "PNG"))
    assert np.abs(pixels.astype(int) - upright).max() <= 2


def test_transparent_palette_entries_are_white():
    image = Image.new("P", (4, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = read_image(_encoded(image, "PNG", transparency=1))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, 1].tolist() == [255, 255, 255]


def test_half_transparent_palette_entries_are_mixed_with_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = read_image(_encoded(image, "PNG", transparency=bytes([255, 128])))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert np.abs(pixels[0, 1].astype(int) - [127, 127, 255]).max() <= 1


def test_alpha_is_composited_onto_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (10, 20, 30, 255), (0, 0, 0, 128)])
    pixels = read_image(_encoded(image, "PNG"))
    assert pixels[0, 0].tolist() == [255, 255, 255]  # the hidden black does not show
    assert pixels[0, 1].tolist() == [10, 20, 30]
    assert abs(int(pixels[0, 2, 0]) - 127) <= 1


def test_grey_with_alpha_is_composited_onto_white():
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (77, 255)])
    pixels = read_image(_encoded(image, "PNG"))
    assert pixels[0].tolist() == [[255] * 3, [77] * 3]


def test_a_single_transparent_colour_of_an_rgb_png_is_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    pixels = read_image(_encoded(image, "PNG", transparency=(1, 2, 3)))
    assert pixels[0].tolist() == [[255] * 3, [9] * 3]


def test_grey_is_repeated_and_one_bit_is_black_and_white():
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    pixels = read_image(_encoded(grey, "PNG"))
    np.testing.assert_array_equal(pixels, np.asarray(grey)[..., None].repeat(3, -1))
    bits = Image.new("1", (2, 1), 0)
    bits.putpixel((1, 0), 1)
    for kind in ("PNG", "TIFF", "BMP"):
        assert read_image(_encoded(bits, kind))[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_its_range(kind):
    values = np.array([[0, 257, 128 * 257, 32768, 65535]], np.uint16)
    pixels = read_image(_encoded(Image.fromarray(values), kind))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 128, 255]


def test_a_dim_sixteen_bit_image_stays_dim():
    values = np.full((4, 4), 1000, np.uint16)
    assert read_image(_encoded(Image.fromarray(values), "PNG")).max() == 4


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bit_grey_is_stretched(dtype):
    values = np.array([[-100, 0, 101]], dtype)
    pixels = read_image(_encoded(Image.fromarray(values), "TIFF"))
    assert pixels[0, :, 0].tolist() == [0, 127, 255]


def test_infinite_values_do_not_affect_the_stretch():
    values = np.array([[0, 1, np.nan, np.inf, -np.inf]], np.float32)
    pixels = read_image(_encoded(Image.fromarray(values), "TIFF"))
    assert pixels[0, :, 0].tolist() == [0, 255, 0, 255, 0]


def _cmyk() -> tuple[Image.Image, np.ndarray]:
    """Quadrants of ink and the colours a person sees: white, red, black, pale cyan."""
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[:16, 16:] = (0, 255, 255, 0)
    ink[16:, :16] = (0, 0, 0, 255)
    ink[16:, 16:] = (100, 0, 0, 0)
    seen = np.full((32, 32, 3), 255, np.uint8)
    seen[:16, 16:] = (255, 0, 0)
    seen[16:, :16] = (0, 0, 0)
    seen[16:, 16:] = (155, 255, 255)
    return Image.fromarray(ink, "CMYK"), seen


def _without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[:at] + data[at + 16 :]


def _close(pixels: np.ndarray, seen: np.ndarray) -> bool:
    return float(np.abs(pixels.astype(int) - seen).max()) <= 6


def test_cmyk_tiff_shows_its_colours():
    image, seen = _cmyk()
    assert _close(read_image(_encoded(image, "TIFF")), seen)


def test_adobe_cmyk_jpeg_is_not_a_negative():
    image, seen = _cmyk()
    data = _encoded(image, "JPEG", quality=100)
    assert b"Adobe" in data  # hence stored inverted
    assert _close(read_image(data), seen)


def test_cmyk_jpeg_without_the_adobe_marker_is_shown_as_pillow_and_browsers_do():
    image, seen = _cmyk()
    data = _without_adobe(_encoded(image, "JPEG", quality=100))
    assert _close(read_image(data), seen)
    assert _close(np.asarray(Image.open(BytesIO(data)).convert("RGB")), seen)


def test_ycck_jpeg_shows_its_colours():
    image, seen = _cmyk()
    ink = np.asarray(image)
    ycc = np.asarray(Image.fromarray(ink[..., :3].copy()).convert("YCbCr"))
    stored = np.concatenate([ycc, 255 - ink[..., 3:]], axis=-1)
    data = bytearray(_encoded(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100))
    at = data.index(b"Adobe") + 11  # the marker's transform byte: 2 says YCCK
    assert data[at] == 0
    data[at] = 2
    assert _close(read_image(bytes(data)), seen)


def test_lab_and_hsv_become_rgb(upright):
    lab = Image.new("LAB", (2, 2), (255, 128, 128))  # L = 100 %, no colour
    assert read_image(_encoded(lab, "TIFF")).min() > 250
    hsv = Image.fromarray(upright).convert("HSV")
    assert np.abs(read_image(hsv).astype(int) - upright).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read_image(data)[0, 0].tolist() == [255, 0, 0]


def test_an_image_of_one_pixel_is_an_image():
    assert read_image(_encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [
        [[1, 2, 3]]
    ]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused_and_never_half_grey(kind, options, share):
    data = _encoded(_photo(), kind, **options)
    assert _reason(data[: int(len(data) * share)])


def test_a_truncated_file_is_refused_even_when_another_library_asked_for_leniency(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = _encoded(_photo(), "JPEG")
    assert "truncated" in _reason(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # restored


def test_reasons_name_the_content(tmp_path: Path):
    def file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    assert "empty" in _reason(file("a.jpg", b""))
    assert "web page" in _reason(file("b.jpg", b"\n<!DOCTYPE html><html>404</html>"))
    assert "PDF" in _reason(file("c.jpg", b"%PDF-1.7 ..."))
    assert "SVG" in _reason(file("d.png", b"<svg xmlns='...'/>"))
    assert "HEIC" in _reason(file("e.jpg", b"\0\0\0\x18ftypheic" + bytes(64)))
    assert "LFS" in _reason(file("f.jpg", b"version https://git-lfs.github.com/spec/v1\n"))
    assert "not an image" in _reason(file("g.jpg", b"just some words"))
    assert "folder" in _reason(tmp_path)
    assert "no such file" in _reason(tmp_path / "missing.jpg")
    assert "cannot be read" in _reason("a\0b.jpg")
    png = _encoded(_photo(), "PNG")
    assert "truncated" in _reason(png[: len(png) // 2])


def test_formats_outside_the_list_are_never_opened():
    postscript = _encoded(Image.new("RGB", (8, 8)), "EPS")
    assert "PostScript" in _reason(postscript)
    assert "not supported" in _reason(_encoded(Image.new("RGB", (8, 8)), "ICO"))


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [14_000, 100_000])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    start = time.perf_counter()
    assert "limit of 178,956,970" in _reason(_png_header(side, side))
    assert time.perf_counter() - start < 1


def test_the_limit_of_pixels_is_inclusive(upright):
    data = _encoded(Image.fromarray(upright), "PNG")
    assert read_image(data, max_pixels=HEIGHT * WIDTH).shape == upright.shape
    with pytest.raises(BadImage, match="48 x 32 pixels is larger"):
        read_image(data, max_pixels=HEIGHT * WIDTH - 1)


def test_random_damage_gives_an_image_or_a_bad_image_and_nothing_else(upright):
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        clean = _encoded(Image.fromarray(upright), kind)
        for _ in range(60):
            data = bytearray(clean)
            for at in rng.integers(0, len(data), 4):
                data[at] = rng.integers(256)
            try:
                pixels = read_image(bytes(data), max_pixels=1_000_000)
            except BadImage as error:
                assert error.reason
            else:
                assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


def test_nothing_is_printed_on_the_terminal(tmp_path, capfd):
    odd = Image.new("P", (4, 4), 0)
    odd.putpalette([255, 0, 0, 0, 0, 255])
    files = [
        _encoded(odd, "PNG", transparency=bytes([0, 128])),
        _png_header(14_000, 14_000),
        b"II*\0" + bytes(40),
        _encoded(_photo(), "JPEG", exif=b"Exif\0\0broken"),
        _encoded(_photo(), "TIFF")[:2000],
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in files:
            with contextlib.suppress(BadImage):
                read_image(data)
    assert not caught
    assert capfd.readouterr() == ("", "")


# -- JPEG: two decoders, one result -------------------------------------------------------------


def jpeg(size: tuple[int, int], mode: str = "RGB", **options) -> bytes:
    """A photograph-like JPEG of (width, height)."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    file = BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (37, 29), (501, 377)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sufficient", [None, 2000])
def test_with_and_without_simplejpeg_the_pixels_are_the_same(
    mode, size, subsampling, progressive, sufficient, monkeypatch
):
    data = jpeg(size, mode, subsampling=subsampling, progressive=progressive)
    fast = read_image(data, sufficient_pixels=sufficient)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert np.array_equal(fast, read_image(data, sufficient_pixels=sufficient))


@pytest.mark.parametrize(
    ("sufficient", "shape"),
    [
        (None, (377, 501, 3)),
        (10**9, (377, 501, 3)),
        (377 * 501 // 4, (189, 251, 3)),
        (377 * 501 // 4 + 1, (377, 501, 3)),
        (377 * 501 // 16, (95, 126, 3)),
        (1, (48, 63, 3)),
    ],
)
def test_a_jpeg_is_reduced_while_sufficient_pixels_remain(sufficient, shape):
    assert read_image(jpeg((501, 377)), sufficient_pixels=sufficient).shape == shape


def test_a_reduced_jpeg_looks_like_the_full_one_reduced():
    data = jpeg((400, 320), quality=95)
    whole = Image.fromarray(read_image(data)).reduce(4)
    assert (
        np.abs(read_image(data, sufficient_pixels=8000).astype(int) - np.asarray(whole)).mean() < 1
    )


def test_a_reduced_jpeg_is_turned_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(jpeg((400, 320), exif=exif), sufficient_pixels=8000).shape == (100, 80, 3)


def test_only_jpeg_is_reduced():
    file = BytesIO()
    Image.new("RGB", (400, 320)).save(file, "PNG")
    assert read_image(file.getvalue(), sufficient_pixels=1).shape == (320, 400, 3)


def test_an_odd_jpeg_that_pillow_accepts_is_accepted():
    data = jpeg((64, 48))
    odd = data[:-2] + b"\x00\x00\x00" + data[-2:]  # stray bytes before the end marker
    assert np.array_equal(read_image(odd), read_image(data))

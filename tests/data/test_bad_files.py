"""Damaged and odd files: nothing crashes, and every bad file is listed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel.data.open import open_source
from nolabel.data.sources._decode import read_image
from nolabel.errors import BadImage

GROWTH = 300e6  # bytes of memory that reading the corpus may add


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    if image is None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        image = Image.fromarray(noise)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header says so, with pixels for a few lines."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(3000)))
        + chunk(b"IEND", b"")
    )


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose frame header says another size."""
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


JPEG, PNG = encoded("JPEG", quality=90), encoded("PNG")
BAD = {
    "zero.jpg": b"",
    "one-byte.jpg": b"\xff",
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "page-with-mark.png": b"\xef\xbb\xbf\n <html>",
    "error.jpg": b'{"error": "forbidden"}',
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "document.jpg": b"%PDF-1.7\n",
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "archive.jpg": b"PK\x03\x04" + bytes(60),
    "zipped.png": b"\x1f\x8b\x08" + bytes(60),
    "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "phone.jpg": b"\x00\x00\x00\x18ftypheic" + bytes(60),
    "pickle.jpg": pickle.dumps({"image": 1}),
    "numpy.png": b"\x93NUMPY\x01\x00" + bytes(60),
    "text.jpg": "not a picture, a word in Greek: εἰκών".encode(),
    "zeros.png": bytes(5000),
    "start.jpg": JPEG[:2],
    "head.jpg": JPEG[:300],
    "half.jpg": JPEG[: len(JPEG) // 2],
    "last-bytes.jpg": JPEG[:-200],
    "progressive.jpg": encoded("JPEG", progressive=True)[:-500],
    "head.png": PNG[:33],
    "half.png": PNG[: len(PNG) // 2],
    "bad-check.png": PNG[:40] + b"\x00\x01\x02\x03" + PNG[44:],
    "half.webp": encoded("WEBP", lossless=True)[:-3000],
    "half.gif": encoded("GIF")[:500],
    "half.bmp": encoded("BMP")[:2000],
    "half.tif": encoded("TIFF")[:900],
    "half.ppm": encoded("PPM")[:900],
    "bomb.png": png_header(20_000, 10_000),
    "bomb.jpg": jpeg_of_size(20_000, 10_000),
    "nearly-a-bomb.png": png_header(13_000, 13_000),
    "nearly-a-bomb.jpg": jpeg_of_size(13_000, 13_000),
    "no-width.png": png_header(0, 10),
    "wide.png": png_header(2**31 - 1, 1),
}


def good_but_odd() -> dict[str, bytes]:
    """Unusual files that are valid images."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (20, 20), (i * 80, 0, 0)) for i in range(3)]
    deep = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    return {
        "dot.png": encoded("PNG", Image.new("RGB", (1, 1))),
        "dot.jpg": encoded("JPEG", Image.new("RGB", (1, 1))),
        "line.png": encoded("PNG", Image.new("RGB", (3000, 1))),
        "moving.gif": encoded("GIF", frames[0], save_all=True, append_images=frames[1:]),
        "print.jpg": encoded("JPEG", Image.new("CMYK", (20, 20), (0, 90, 90, 10))),
        "deep.png": encoded("PNG", Image.fromarray(deep)),
        "deep.tif": encoded("TIFF", Image.fromarray(deep)),
        "turned.jpg": encoded("JPEG", exif=exif),
        "profile.jpg": encoded("JPEG", icc_profile=b"this is no profile" * 20),
        "profile.png": encoded("PNG", icc_profile=b"nor is this"),
        "wrong-name.png": JPEG,
        "one-bit.png": encoded("PNG", Image.new("1", (20, 20))),
        "palette.png": encoded("PNG", Image.new("P", (20, 20))),
        "clear.png": encoded("PNG", Image.new("RGBA", (20, 20), (9, 9, 9, 0))),
        "more-behind.jpg": JPEG + b"\x00" * 999,
        "a name, with: odd 'signs' %s {} \u00e9.jpg": JPEG,
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, data in {**BAD, **good_but_odd()}.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to(folder / "missing")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    return folder


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_a_reason(name):
    with pytest.raises(BadImage) as caught:
        read_image(BAD[name])
    assert len(caught.value.reason) > 8
    with pytest.raises(BadImage):
        read_image(BAD[name], sufficient_pixels=100)


@pytest.mark.parametrize("name", good_but_odd())
def test_an_odd_file_is_read(name):
    pixels = read_image(good_but_odd()[name])
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


# In a separate process, to measure its peak memory. `resource` counts kilobytes.
READER = """
import json, resource, sys
from nolabel.data.loader import make_loader
from nolabel.data.open import open_source
from nolabel.views import FastViews, View, ViewPlan
import PIL.Image, simplejpeg
source = open_source(sys.argv[1])
views = FastViews(ViewPlan(views=(View(name="v", size=32, count=2),)))
loader = lambda size, steps, workers: make_loader(
    source, views, seed=0, batch_size=size, start_step=0, total_steps=steps, workers=workers)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
listed = sorted({path for b in loader(4, len(source) // 4, 0) for path, _ in b.skipped})
child = sorted({path for b in loader(4, len(source) // 4, 2) for path, _ in b.skipped})
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
biggest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before
print(json.dumps([listed, child, 1024 * max(grown, biggest)]))
"""


def read_all(source: str) -> tuple[list[str], int]:
    """Runs an epoch in this process and in two workers; what was skipped, and bytes grown."""
    run = subprocess.run(
        [sys.executable, "-c", READER, source], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    listed, child, grown = json.loads(run.stdout)
    assert listed == child
    return listed, grown


def test_an_epoch_over_the_corpus_lists_every_bad_file_and_stays_small(corpus):
    source = open_source(corpus)
    assert len(source) == len(BAD) + len(good_but_odd()) + 3 and len(BAD) >= 30
    listed, grown = read_all(str(corpus))
    names = {Path(path).name for path in listed}
    dropped = len(source) % 4  # the last, incomplete batch
    assert len((set(BAD) | {"pipe.jpg", "nowhere.jpg", "circle.jpg"}) - names) <= dropped
    assert not names & set(good_but_odd())
    assert grown < GROWTH


def test_the_same_files_in_a_shard_are_listed_too(corpus, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:

        def add(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, link
            tar.addfile(info, io.BytesIO(data))

        for i, (name, data) in enumerate({**BAD, **good_but_odd()}.items()):
            add(f"{i:03}/{name}", data)
        add("/".join(["deep"] * 60) + "/x.jpg", JPEG)
        add("../../escape.jpg", JPEG)
        add("/etc/absolute.jpg", JPEG)
        add("linked.jpg", b"", tarfile.SYMTYPE, "/etc/passwd")
        add("hard.jpg", b"", tarfile.LNKTYPE, "000/zero.jpg")
        add("device.jpg", b"", tarfile.CHRTYPE)
        add("500/label.jpg", JPEG)
        add("500/label.pkl", pickle.dumps(print))
        add("500/label.pyd", pickle.dumps(print))
    source = open_source(str(tmp_path / "a.tar"))
    assert len(source) == len(BAD) + len(good_but_odd()) + 4
    listed, grown = read_all(str(tmp_path / "a.tar"))
    names = {path.rpartition("/")[2] for path in listed}
    assert len(set(BAD) - names) <= len(source) % 4
    assert not names & {*good_but_odd(), "escape.jpg", "absolute.jpg", "x.jpg", "label.jpg"}
    assert grown < GROWTH
    assert not (tmp_path.parent / "escape.jpg").exists()

"""Files of others: bounded memory and time, and a reason instead of a crash."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel._files.yaml import read_yaml
from nolabel.data.open import open_source
from nolabel.data.sources import _decode, _pixels
from nolabel.data.sources._bands import read_bands
from nolabel.data.sources._decode import read_image
from nolabel.errors import BadImage, DataError, UsageError


def _png(width: int, height: int, data: bytes) -> bytes:
    def block(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = zlib.compress(data)
    return (
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", image) + block(b"IEND", b"")
    )


GIF = b"GIF89a" + struct.pack("<HHBBB", 13000, 13000, 0xF0, 0, 0) + bytes(6)
GIF += b"," + struct.pack("<HHHHB", 0, 0, 13000, 13000, 0) + b"\x02\x01\x44\x00;"


@pytest.mark.parametrize("data", [GIF, _png(13000, 13000, b"")])
def test_a_header_that_claims_more_pixels_than_the_file_can_hold_is_refused_undecoded(data: bytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match=r"cannot hold 13000 x 13000 pixels"):
        read_image(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_small_file_of_one_colour_is_still_read():
    for form in ("PNG", "GIF", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (3000, 3000), "teal").save(file, form)
        assert read_image(file.getvalue()).shape == (3000, 3000, 3)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 3), ("CMYK", 3), ("L", 1)])
def test_a_jpeg_of_hundreds_of_scans_is_refused(mode: str, channels: int):
    file = io.BytesIO()
    Image.new(mode, (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    assert read_bands(data, channels).shape == (64, 64, channels)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match=r"a JPEG of \d+ scans; at most 100"):
        read_bands(data[:scan] + data[scan:-2] * 400 + data[-2:], channels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "L"])
def test_converting_in_strips_gives_what_converting_at_once_gives(
    mode: str, monkeypatch: pytest.MonkeyPatch
):
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    image = Image.fromarray(noise, "RGBA")
    image = image.quantize(16) if mode == "P" else image.convert("RGB" if mode == "CMYK" else mode)
    if mode == "CMYK":
        image = image.convert("CMYK")
    if mode == "P":
        image.info["transparency"] = 3
    whole = read_image(image)
    monkeypatch.setattr(_pixels, "_STRIP_PIXELS", 50)
    assert np.array_equal(read_image(image), whole)


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 3), }",
        "{'descr': '<u2', 'fortran_order': False, 'shape': (4, 4, 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (((((((((((((",
        "no header",
    ],
)
def test_an_array_whose_header_lies_is_a_bad_image(header: str):
    with pytest.raises(BadImage, match="array"):
        read_bands(_npy(header, bytes(48)), 3)


def test_an_honest_array_is_read():
    data = _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4, 3), }", bytes(48))
    assert read_bands(data, 3).shape == (4, 4, 3)


def test_pipes_and_devices_among_the_images_are_bad_images_for_every_reader(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    source = open_source(str(tmp_path))
    names = [Path(source.path(i)).name for i in range(len(source))]
    for i, name in enumerate(names):
        for read in (source.read, source.read_bytes):
            if name == "good.png":
                read(i)
            else:
                with pytest.raises(BadImage, match="not a regular file"):
                    read(i)


def test_too_many_open_files_are_named_and_not_blamed_on_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: str) -> None:
        raise OSError(24, "Too many open files", path)

    monkeypatch.setattr(_decode, "open_regular", refuse)
    with pytest.raises(DataError, match="ulimit -n"):
        read_image(tmp_path / "a.png")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{k}: &{k} [{', '.join([f'*{p}'] * 9)}]\n" for p, k in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{k}: &{k} {{<<: [{', '.join([f'*{p}'] * 9)}]}}\n"
    for p, k in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, MERGES, "a: &a [*a]\n", "[" * 50_000, "a: !!python/object/apply:os.system [x]\n",
     "a: \x00\n", "x" * 2_000_000],
    ids=["aliases", "merges", "cycle", "depth", "object", "control", "long"],
)  # fmt: skip
def test_a_yaml_file_cannot_unfold_recurse_or_execute(tmp_path: Path, text: str):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_yaml(tmp_path / "c.yaml")
    assert len(str(error.value)) < 1000


def test_a_yaml_pipe_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match="not a file"):
        read_yaml(tmp_path / "c.yaml")


def test_without_a_home_and_in_ascii_the_command_line_still_works(tmp_path: Path):
    (tmp_path / "données").mkdir()
    for i in range(9):
        Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(tmp_path / "données" / f"é{i}.png")
    code = (
        "import os, pathlib\n"
        "def gone(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = staticmethod(gone)\n"
        "import nolabel.cli\n"
        "raise SystemExit(nolabel.cli.main(['embed', '--encoder', 'random:vit_pico', '--data', "
        "'données', '--out', 'e.npy']))"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "NOLABEL_CACHE")}
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env=env | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr.decode("ascii", "replace")
    assert (tmp_path / "e.npy").exists()

"""Packing keeps all samples, also when it is stopped and continued."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from nolabel import cli
from nolabel._files import LOCK, Lock
from nolabel.data.open import open_source
from nolabel.data.sources.shards import Shards
from nolabel.errors import DataError, UsageError
from nolabel.tools.pack import Packing, pack, verify


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """Twelve photographs of noise, 40 x 30, in two folders; one more file that is no image."""
    chance = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / "photos" / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(chance.integers(0, 255, (3, 4, 3), dtype=np.uint8))
        small.resize((40, 30)).save(folder / f"photo.{i}.jpg")
    (tmp_path / "photos" / "cats" / "web.jpg").write_text("<html>")
    return tmp_path / "photos"


def good(source):
    return [i for i in range(len(source)) if not source.path(i).endswith("web.jpg")]


def test_without_shrinking_the_very_files_come_out_with_label_and_name(photos, tmp_path):
    source = open_source(str(photos))
    numbers = pack(source, tmp_path / "out", Packing(shard_images=5))
    packed = Shards(numbers["pattern"])
    assert (numbers["images"], numbers["skipped"], numbers["shards"]) == (12, 1, 3)
    kept = good(source)
    assert [packed.read_bytes(i) for i in range(12)] == [source.read_bytes(i) for i in kept]
    assert packed.classes == source.classes
    assert packed.labels.tolist() == source.labels[kept].tolist()
    assert "cats/" in packed.path(0) and "photo_" in packed.path(0)
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("web.jpg")


def test_shrunk_images_have_the_longest_side_and_look_the_same(photos, tmp_path):
    source = open_source(str(photos))
    packed = Shards(pack(source, tmp_path / "out", Packing(max_side=20))["pattern"])
    for j, i in enumerate(good(source)):
        small, large = packed.read(j).image, source.read(i).image
        assert small.shape == (15, 20, 3)
        same = np.asarray(Image.fromarray(large).resize((20, 15), Image.Resampling.LANCZOS), float)
        assert np.abs(small - same).mean() < 6
        assert Image.open(io.BytesIO(packed.read_bytes(j))).format == "JPEG"


def test_what_has_no_files_is_packed_without_loss(tmp_path):
    source = open_source("digits:test")
    packed = Shards(pack(source, tmp_path / "out")["pattern"])
    assert packed.classes == source.classes
    for i in range(0, len(source), 50):
        np.testing.assert_array_equal(packed.read(i).image, source.read(i).image)
        assert packed.read(i).label == source.read(i).label


def test_texts_of_a_table_and_of_shards_are_kept(photos, tmp_path):
    (photos / "t.csv").write_text(
        "path,label,text\ncats/photo.1.jpg,1,eins é\ndogs/photo.0.jpg,0,zwei\n"
    )
    once = pack(open_source(str(photos / "t.csv")), tmp_path / "once")["pattern"]
    twice = pack(open_source(once), tmp_path / "twice")["pattern"]
    for pattern in (once, twice):
        assert [Shards(pattern).read(i).text for i in (0, 1)] == ["eins é", "zwei"]
        assert Shards(pattern).classes == ("0", "1")


def test_the_same_images_give_the_same_bytes(photos, tmp_path):
    for out in ("a", "b"):
        pack(open_source(str(photos)), tmp_path / out, Packing(max_side=20))
    a, b = ((tmp_path / out / "000000.tar").read_bytes() for out in ("a", "b"))
    assert a == b


def test_killed_and_started_again_it_goes_on_and_the_shards_are_the_same(photos, tmp_path):
    pack(open_source(str(photos)), tmp_path / "whole", Packing(shard_images=3))
    script = (
        "import sys, time\n"
        "from nolabel.tools import pack as p\n"
        "from nolabel.data.open import open_source\n"
        "real = p._encode_member\n"
        "def slow(*a):\n    time.sleep(0.2)\n    return real(*a)\n"
        "p._encode_member = slow\n"
        "p.pack(open_source(sys.argv[1]), sys.argv[2], p.Packing(shard_images=3))\n"
    )
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", script, str(photos), str(out)])
    for _ in range(600):
        if (out / "000001.tar").exists():
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = (out / "000000.tar").stat().st_mtime_ns
    assert not (out / "000004.tar").exists()
    pack(open_source(str(photos)), out, Packing(shard_images=3))
    assert (out / "000000.tar").stat().st_mtime_ns == before  # not made again
    for i in range(5):
        name = f"{i:06}.tar"
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert verify(out) == []


def test_a_changed_byte_is_found(photos, tmp_path):
    pack(open_source(str(photos)), tmp_path / "out")
    path = tmp_path / "out" / "000000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert verify(tmp_path / "out") == ["000000.tar"]


def test_other_settings_and_other_folders_are_refused(photos, tmp_path):
    source = open_source(str(photos))
    pack(source, tmp_path / "out")
    with pytest.raises(UsageError, match="different: max_side"):
        pack(source, tmp_path / "out", Packing(max_side=9))
    with pytest.raises(UsageError, match="not empty"):
        pack(source, photos)
    (tmp_path / "out" / "000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="has changed"):
        pack(source, tmp_path / "out")


def test_the_verb_says_what_it_did_and_how_to_go_on(photos, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["--data", str(photos), "--out", str(out), "--max-side", "20"]
    assert cli.main(["pack", *args, "--json", str(tmp_path / "n.json")]) == 0
    printed = capsys.readouterr().out
    assert "12 images in 1 shards" in printed and "images/s before" in printed
    assert f"--data '{out}/*.tar'" in printed
    assert json.loads((tmp_path / "n.json").read_text())["images"] == 12
    with pytest.raises(SystemExit) as stop:
        cli.main(["pack", *args[:-1], "0"])
    assert stop.value.code == 2


def test_one_process_at_a_time_packs_into_a_folder(photos, tmp_path):
    with (
        Lock(tmp_path / "out" / LOCK, "it"),
        pytest.raises(UsageError, match="using the packing in"),
    ):
        pack(open_source(str(photos)), tmp_path / "out")
    assert pack(open_source(str(photos)), tmp_path / "out")["images"] == 12


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"{}", b'{"plan": {}, "shards": [5], "skipped": []}', b"[" * 100_000,
     b'{"plan": {}, "shards": [{"file": 5}], "skipped": []}'],
)  # fmt: skip
def test_a_damaged_list_of_shards_is_said(content, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pack.json").write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        pack(open_source(str(photos)), tmp_path / "out")
    with pytest.raises(DataError, match="is damaged"):
        verify(tmp_path / "out")

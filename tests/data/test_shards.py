"""Tar shards: random access, nothing is executed, nothing outside the file is read."""

from __future__ import annotations

import io
import os
import pickle
import tarfile

import pytest
from PIL import Image

from nolabel.data.sources.shards import Shards, expand_braces
from nolabel.errors import BadImage, DataError, UsageError


@pytest.fixture(autouse=True)
def separate_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "cache"))


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def write(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                tar.addfile(info)


def sample(i, label="a", text=None):
    out = [(f"d/{i:03}.png", png(i)), (f"d/{i:03}.cls", str(label).encode())]
    return out + ([(f"d/{i:03}.txt", text.encode())] if text else [])


def test_samples_of_several_shards_are_read_in_any_order(tmp_path):
    for shard in range(3):
        write(tmp_path / f"{shard:02}.tar", sum((sample(10 * shard + i) for i in range(4)), []))
    source = Shards(f"{tmp_path}/{{00..02}}.tar")
    assert len(source) == 12
    values = [int(source.read(i).image[0, 0, 0]) for i in (11, 0, 5, 4, 11)]
    assert values == [23, 0, 11, 10, 23]
    assert source.path(4).endswith("01.tar::d/010.png")
    assert len(Shards(f"{tmp_path}/*.tar")) == 12


def test_labels_and_texts_belong_to_their_sample(tmp_path):
    members = sample(1, 10, "one") + sample(2, 9) + sample(3, 10, "trois: é")
    write(tmp_path / "a.tar", [members[i] for i in (0, 3, 1, 2, 4, 5, 6, 7)])  # interleaved
    source = Shards(tmp_path / "a.tar")
    assert source.classes == ("9", "10")
    got = [source.read(i) for i in range(3)]
    assert [(int(s.image[0, 0, 0]), s.label, s.text) for s in got] == [
        (1, 1, "one"), (2, 0, None), (3, 1, "trois: é"),
    ]  # fmt: skip


def test_labels_are_dropped_when_one_sample_has_none(tmp_path):
    write(tmp_path / "a.tar", [*sample(1), ("b.png", png(7))])
    assert Shards(tmp_path / "a.tar").labels is None


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pickles_links_and_names_that_escape_are_never_followed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(99))
    link = tarfile.TarInfo("d/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard = tarfile.TarInfo("d/hard.png")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../secret.png"
    device = tarfile.TarInfo("d/device.png")
    device.type = tarfile.CHRTYPE
    bomb = pickle.dumps(Bomb())
    box = tmp_path / "box"
    box.mkdir()
    write(
        box / "a.tar",
        [
            ("d/1.png", png(1)), ("d/1.pkl", bomb), ("d/1.pyd", bomb), ("d/2.pth", bomb),
            ("", link), ("", hard), ("", device), ("../../escape.png", png(2)),
            ("/absolute.png", png(3)),
        ],
    )  # fmt: skip
    source = Shards(box / "a.tar")
    assert [int(source.read(i).image[0, 0, 0]) for i in range(len(source))] == [1, 2, 3]
    assert {p.name for p in tmp_path.iterdir()} == {"secret.png", "box", "cache"}
    assert {p.name for p in box.iterdir()} == {"a.tar"}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_deep_names_are_read_in_every_dialect(form, tmp_path):
    deep = "/".join(["folder-of-some-length"] * 40)
    write(tmp_path / "a.tar", [(f"{deep}/é{i}.png", png(i)) for i in (5, 6)], format=form)
    source = Shards(tmp_path / "a.tar")
    assert source.path(1).endswith("é6.png")
    assert int(source.read(1).image[0, 0, 0]) == 6


def test_a_truncated_shard_gives_intact_samples_and_lists_the_rest(tmp_path):
    write(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(5)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 4 * 1024 + 512 + 20])  # in the middle of the fifth
    source = Shards(tmp_path / "a.tar")
    bad = 0
    for i in range(len(source)):
        try:
            assert int(source.read(i).image[0, 0, 0]) == i
        except BadImage as error:
            bad += 1
            assert "ends too early" in error.reason
    assert len(source) - bad == 4


def test_a_bad_image_names_shard_and_member(tmp_path):
    write(tmp_path / "a.tar", [("x.png", b"<html>no image</html>"), ("y.png", png(1))])
    with pytest.raises(BadImage, match=r"a\.tar::x\.png: a web page"):
        Shards(tmp_path / "a.tar").read(0)


def test_many_shards_do_not_use_up_the_file_descriptors(tmp_path):
    import os

    for i in range(100):
        write(tmp_path / f"{i:03}.tar", [("x.png", png(i))])
    source = Shards(f"{tmp_path}/*.tar")
    before = len(os.listdir("/proc/self/fd"))
    assert [int(source.read(i).image[0, 0, 0]) for i in range(100)] == list(range(100))
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    del source
    assert len(os.listdir("/proc/self/fd")) <= before


def test_workers_give_the_same_batches(tmp_path, same_in_workers):
    write(tmp_path / "a.tar", sum((sample(i) for i in range(60)), []))
    same_in_workers(Shards(tmp_path / "a.tar"), start=2, steps=7)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.tar.gz", b"", UsageError, "compressed"),
        ("missing.tar", None, UsageError, "missing"),
        ("*.tar", None, UsageError, "no shard matches"),
        ("a.tar", b"this is no tar" * 100, DataError, "not a readable tar file"),
        ("a.tar", b"", DataError, "not a readable tar file|No images"),
    ],
)
def test_files_that_are_not_shards_are_refused_with_a_hint(name, content, error, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        Shards(tmp_path / name)


def test_braces_expand_ranges_and_alternatives():
    assert expand_braces("a{08..10}.tar") == ["a08.tar", "a09.tar", "a10.tar"]
    assert expand_braces("{x,y}{1..2}") == ["x1", "x2", "y1", "y2"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_dots_in_names_lose_no_image(tmp_path):
    members = [(f"d/scan 22.{i:02}.png", png(i)) for i in range(5)]
    members += [(f"d/scan 22.{i:02}.cls", b"ab"[i % 2 : i % 2 + 1]) for i in range(5)]
    members += [("d/0.left.png", png(50)), ("d/0.right.png", png(51)), ("d/0.cls", b"a")]
    write(tmp_path / "a.tar", members)
    source = Shards(tmp_path / "a.tar")
    assert [int(source.read(i).image[0, 0, 0]) for i in range(7)] == [0, 1, 2, 3, 4, 50, 51]
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 0, 0] and source.notes == ()


def test_a_mask_beside_its_image_is_left_out_and_told(tmp_path):
    members = [("0.seg.png", png(9)), ("0.png", png(1)), ("0.jpg", png(8)), ("1.png", png(2))]
    write(tmp_path / "a.tar", members)
    source = Shards(tmp_path / "a.tar")
    assert [int(source.read(i).image[0, 0, 0]) for i in range(2)] == [1, 2]
    assert "2 image(s) were left out" in source.notes[0] and "0.seg.png" in source.notes[0]


def test_a_tar_that_does_not_end_as_a_tar_is_told(tmp_path):
    write(tmp_path / "whole.tar", sum((sample(i) for i in range(20)), []))
    data = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        middle = tar.getmembers()[20]
    cuts = {
        "in a file": data[: middle.offset_data + 20],
        "in a header": data[: middle.offset + 200],
        "between": data[: middle.offset],
        "garbage": data[: middle.offset] + b"x" * 4096,
        "two": data + data,
    }
    words = {"in a file": "too early", "in a header": "too early", "between": "no end marker",
             "garbage": "damaged at byte", "two": "goes on after its end"}  # fmt: skip
    assert Shards(tmp_path / "whole.tar").notes == ()
    for name, content in cuts.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        source = Shards(tmp_path / f"{name}.tar")
        assert len(source.notes) == 1 and words[name] in source.notes[0]
        assert len(source) == {"in a file": 11, "two": 20}.get(name, 10)


def test_groups_and_domains_of_shards_are_read_and_missing_labels_are_named(tmp_path):
    members = [(f"{i}.{k}", v) for i in range(4) for k, v in (
        ("png", png(i)), ("group", b"p%d" % (i // 2)), ("domain", b"x"), ("cls", b"ab"[:i]),
    )]  # fmt: skip
    write(tmp_path / "a.tar", members)
    source = Shards(tmp_path / "a.tar")
    assert source.groups.tolist() == [0, 0, 1, 1] and list(source.group_names) == ["p0", "p1"]
    assert source.domain_names == ("x",)
    assert source.labels is None and "1 of 4 labels are missing" in source.unlabelled
    assert "0.png" in source.unlabelled


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path, kind):
    header = tarfile.TarInfo("claims")
    header.type, header.size = kind, 8 << 30
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty.txt"))
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + whole.getvalue())
    with pytest.raises(DataError, match="not a readable tar"):
        Shards(tmp_path / "a.tar")


def test_a_member_that_claims_more_than_the_file_holds_is_a_bad_image(tmp_path):
    write(tmp_path / "a.tar", sample(0))
    data = (tmp_path / "a.tar").read_bytes()
    header = tarfile.TarInfo("last.png")
    header.size = 1 << 40
    end = data.rstrip(b"\0")
    end += bytes(-len(end) % 512)
    (tmp_path / "b.tar").write_bytes(end + header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    source = Shards(tmp_path / "b.tar")
    for i in range(len(source)):
        if source.path(i).endswith("last.png"):
            with pytest.raises(BadImage, match="ends too early"):
                source.read(i)


def test_a_shard_that_was_exchanged_under_the_same_size_and_time_is_indexed_anew(tmp_path):
    path = tmp_path / "a.tar"
    write(path, sample(0, "aa") + sample(1, "bb"))
    before = path.stat()
    assert Shards(str(path)).classes == ("aa", "bb")
    write(path, sample(0, "cc") + sample(1, "bb"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert Shards(str(path)).classes == ("bb", "cc")

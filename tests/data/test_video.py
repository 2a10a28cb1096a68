"""Frames of videos are read by time stamp, in any order and in any process."""

from __future__ import annotations

import contextlib
import pickle
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from nolabel.data.open import open_source
from nolabel.data.sources.video import sample_times
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.tools.pack import Packing, pack

av = pytest.importorskip("av")


def film(path: Path, frames: int = 40, rate: int = 10, first: int = 0) -> None:
    """Frame k shows the bits of first + k as stripes; frames are stored out of order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, 2
        for k in range(frames):
            bits = [255 * ((first + k) >> bit & 1) for bit in range(6)]
            image = np.repeat(np.array(bits, np.uint8), 16)[None, :, None].repeat(32, 0)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image.repeat(3, 2), format="rgb24")))
        out.mux(stream.encode())


def numbers(source) -> list[int]:
    """The number of each frame, read off its stripes."""
    found = []
    for i in range(len(source)):
        stripes = source.read(i).image[:, 8::16].mean((0, 2)) > 127
        found.append(sum(1 << bit for bit in range(6) if stripes[bit]))
    return found


@pytest.fixture
def clip(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "cache"))
    film(tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


def test_one_frame_per_second_by_default(clip):
    assert numbers(open_source(str(clip))) == [0, 10, 20, 30]
    assert numbers(open_source(f"{clip}@5")) == list(range(0, 40, 2))
    assert numbers(open_source(f"{clip}@0.5")) == [0, 20]
    assert numbers(open_source(f"{clip}@all")) == list(range(40))
    assert numbers(open_source(f"{clip}@1000")) == list(range(40))


def test_a_frame_is_the_same_whatever_was_read_before(clip):
    source = open_source(f"{clip}@all")
    forward = [source.read(i).image for i in range(len(source))]
    assert forward[0].shape == (32, 96, 3) and forward[0].dtype == np.uint8
    for i in np.random.default_rng(0).permutation(len(source)):
        assert np.array_equal(source.read(int(i)).image, forward[i])


def test_a_folder_of_videos_has_classes_and_groups(clip):
    films = clip.parent / "films"
    film(films / "a" / "1.mp4", frames=20)
    film(films / "b" / "2.mkv", frames=20, first=20)
    (films / "b" / "notes.txt").write_text("x")
    source = open_source(films)
    assert numbers(source) == [0, 10, 20, 30]
    assert source.classes == ("a", "b") and source.labels.tolist() == [0, 0, 1, 1]
    assert source.groups.tolist() == [0, 0, 1, 1]
    assert source.path(3).endswith("2.mkv@1")
    assert len(open_source(f"{films}@5")) == 20


def test_a_broken_video_is_one_bad_image(clip):
    (clip.parent / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    (clip.parent / "page.mp4").write_text("<html>")
    source = open_source(f"{clip.parent}@all")
    assert len(source) == 42
    bad = []
    for i in range(len(source)):
        try:
            source.read(i)
        except BadImage as error:
            bad.append((Path(error.path).name, error.reason))
    assert sorted(name for name, _ in bad) == ["broken.mp4", "page.mp4"]
    assert all("cannot be read" in reason for _, reason in bad)


def test_workers_read_the_same_frames(clip, same_in_workers):
    source = open_source(f"{clip}@all")
    source.read(7)  # a decoder is open in this process
    same_in_workers(source, size=8)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301  spawned workers get it so
    assert np.array_equal(again.read(3).image, source.read(3).image)


def test_frames_can_be_packed(clip, tmp_path):
    pack(open_source(f"{clip}@5"), tmp_path / "packed", Packing())
    packed = open_source(str(tmp_path / "packed" / "*.tar"))
    assert numbers(packed) == list(range(0, 40, 2))


def test_the_index_is_cached_until_the_file_changes(clip, monkeypatch):
    from nolabel.data.sources import video

    open_source(str(clip))
    calls = []
    times = video._time_stamps
    monkeypatch.setattr(video, "_time_stamps", lambda file: calls.append(file) or times(file))
    open_source(f"{clip}@5")
    assert not calls
    film(clip, frames=15)
    assert len(open_source(f"{clip}@all")) == 15 and calls


def test_errors_say_what_is_wrong(clip, monkeypatch):
    with pytest.raises(UsageError, match="above 0"):
        open_source(f"{clip}@0")
    (clip.parent / "empty").mkdir()
    with pytest.raises(DataError, match="No videos"):
        open_source(f"{clip.parent / 'empty'}@5")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"nolabel\[video\]"):
        open_source(str(clip))


def test_sampled_frames_are_those_on_screen_at_each_multiple_of_the_step():
    draw = np.random.default_rng(0)
    for _ in range(200):
        times = np.unique(draw.integers(0, 400, 30)) + int(draw.integers(0, 50))
        step = float(draw.uniform(0.3, 60))
        instants = times[0] + step * np.arange(int((times[-1] - times[0]) / step) + 1)
        expected = {max(t for t in times if t <= x + 0.5) for x in instants}
        assert sample_times(times, step).tolist() == sorted(expected)


def test_a_video_that_claims_to_last_for_centuries_is_sampled_at_once():
    times = np.array([0, 5, 2**61], np.int64)
    assert sample_times(times, 1.0).tolist() == times.tolist()
    assert sample_times(times, 1e-9).tolist() == times.tolist()


def test_a_play_list_among_the_videos_is_never_followed(clip, tmp_path, monkeypatch):
    asked: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "list.mp4").write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n"
        )
        (tmp_path / "sdp.mp4").write_text(f"ffconcat version 1.0\nfile {address}\n")
        for name in ("list.mp4", "sdp.mp4"):
            source = open_source(str(tmp_path / name))
            with pytest.raises(BadImage):
                source.read(0)
        with contextlib.suppress(TimeoutError):
            asked.append(server.accept())
    assert not asked

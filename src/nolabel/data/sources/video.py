"""Frames of videos as images (the extra `video`).

`clip.mp4` samples one frame per second, `clip.mp4@5` five, `clip.mp4@all` all; a folder of videos
likewise. Frames are identified by their time stamp, so that random access always gives the same
frame. Random access is slow, since decoding starts at a key frame: for training, pack the frames
first (`nolabel pack --data clips@5`).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from nolabel.data import _cache
from nolabel.data.labels import encode_names
from nolabel.data.source import Source
from nolabel.data.sources.folder import is_folder, list_files
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.types import Sample

if TYPE_CHECKING:
    from av import VideoFrame

SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"))
_RATE = re.compile(r"(.+)@(all|\d+(?:\.\d+)?)")
_MAX_OPEN = 8  # videos open at the same time in one process
# Decoders that a forked worker inherits. They are kept referenced, since closing one would wait for
# threads that exist only in the parent process.
_inherited: list[object] = []


def is_videos(text: str) -> bool:
    """Whether a string names a video file, a folder with `@RATE`, or a folder of videos only."""
    path, rate = _split_rate(text)
    if os.path.isdir(path):
        return rate is not None or _only_videos(path)
    return os.path.splitext(path)[1].lower() in SUFFIXES and os.path.isfile(path)


class Videos(Source):
    """Frames of one or more videos, in the order of files and time stamps.

    If every video of a folder is in a sub-folder, the sub-folders of the first level are the
    classes. `groups`, int64 [N], is the index of each frame's video. An unreadable video counts as
    one unreadable image.

    Args:
        name: a video or a folder of videos, with `@RATE` for RATE frames per second (by default 1)
            or `@all` for every frame.

    Raises:
        UsageError: the extra is missing, or the rate is 0.
        DataError: the folder holds no video.
    """

    def __init__(self, name: str):
        _import_av()
        self.name = name
        path, rate = _split_rate(name)
        self.rate = None if rate == "all" else float(rate or 1)
        if self.rate == 0:
            raise UsageError(f"{name!r}: the frames per second must be above 0.")
        if os.path.isdir(path):
            files, others = list_files(path, SUFFIXES)
            if not files:
                raise DataError(
                    f"No videos in {path!r} or below it: {others.total():,} other files."
                )
            self.files = [os.path.join(os.path.abspath(path), file) for file in files]
        else:
            files, self.files = [os.path.basename(path)], [os.path.abspath(path)]
        self.bad: dict[int, str] = {}
        times = [self._frame_times(k) for k in range(len(self.files))]
        counts = [len(t) for t in times]
        self.times = np.concatenate(
            times
        )  # int64 [N]: time stamps in units of the video's time base
        self.groups: np.ndarray = np.repeat(np.arange(len(self.files)), counts)
        tops = [file.partition("/")[0] for file in files if "/" in file]
        if len(tops) == len(files):
            self.classes, video_labels = encode_names(tops)
            self.labels = video_labels[self.groups]
        self._reset_readers()

    def _reset_readers(self) -> None:
        """Starts without open videos: decoders and locks are not valid in another process."""
        self._open: OrderedDict[int, _Reader] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    def __len__(self) -> int:
        return len(self.times)

    def path(self, i: int, /) -> str:
        """The video and the index of the frame among its sampled frames, `clip.mp4@7`."""
        video = int(self.groups[i])
        return f"{self.files[video]}@{i - int(np.searchsorted(self.groups, video))}"

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Frame i. Raises BadImage."""
        video = int(self.groups[i])
        if video in self.bad:
            raise BadImage(self.files[video], self.bad[video])
        if os.getpid() != self._process:
            _inherited.append(self._open)
            self._reset_readers()
        with self._lock:  # a decoder has a position, so that threads cannot share it
            try:
                if video not in self._open:
                    while len(self._open) >= _MAX_OPEN:
                        self._open.popitem(last=False)[1].close()
                    self._open[video] = _Reader(self.files[video])
                self._open.move_to_end(video)
                image = self._open[video].frame(int(self.times[i]))
            except _decoding_errors() as error:
                self._open.pop(video, None)
                raise BadImage(self.path(i), f"cannot be decoded ({error})") from None
        return Sample(image=image, label=self.label(i))

    def _frame_times(self, video: int) -> np.ndarray:
        """Time stamps of a video's sampled frames, int64 [frames]; [0] if it cannot be read."""
        file = self.files[video]
        try:
            key = _cache.fingerprint(file)
            arrays = _cache.load("video", key)
            if arrays is None:
                times, second = _time_stamps(file)
                arrays = {"times": times, "second": np.array(second)}
                _cache.store("video", key, arrays)
        except _decoding_errors() as error:
            self.bad[video] = f"a video that cannot be read ({str(error).splitlines()[0]})"
            return np.zeros(1, np.int64)
        times = arrays["times"]
        if not len(times):
            self.bad[video] = "a video without frames"
            return np.zeros(1, np.int64)
        if self.rate is None:
            return times
        return sample_times(times, float(arrays["second"]) / self.rate)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset_readers()


def sample_times(times: np.ndarray, step: float) -> np.ndarray:
    """The frames that are on screen at 0, step, 2 step ... after the first.

    Args:
        times: time stamps of all frames, int64 [F], ascending.
        step: above 0, in the same unit. Its multiples are not listed: a file may claim that it
            lasts for centuries.

    Returns:
        Their time stamps, int64 [at most F].
    """
    # Frame k is on screen at j * step for the first j whose instant is not before it (with half a
    # unit of rounding), if the next frame is not on screen by then.
    first = np.ceil((times - times[0] - 0.5) / step)
    first[0] = 0
    last = np.floor((times[-1] - times[0]) / step)
    return times[np.append(first[:-1] < first[1:], first[-1] <= last)]


class _Reader:
    """One open video. Decodes forward if possible, else seeks to a key frame first."""

    def __init__(self, file: str):
        self.container = _import_av().open(file)
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "NONE"  # there is one data worker per core already
        self.last: int | None = None  # time stamp of the last decoded frame
        self.frames: Iterator[VideoFrame] = iter(())

    def frame(self, time: int) -> np.ndarray:
        """The frame with this time stamp, upright: uint8 [H, W, 3].

        Raises:
            ValueError: there is no such frame.
        """
        second = 1 / float(self.stream.time_base)
        frame = None
        if self.last is not None and self.last < time <= self.last + 2 * second:
            frame = self._decode_until(time)
        # Containers seek by decoding time stamps, which run ahead of presentation time stamps: the
        # key frame may come after the wanted frame. Then seek to 1, 4, 16 ... seconds before it.
        for back in (0, 1, 4, 16, 1e9):
            if frame is not None:
                break
            self.container.seek(int(max(time - back * second, 0)), stream=self.stream)
            self.frames = self.container.decode(self.stream)
            frame = self._decode_until(time)
        if frame is None:
            raise ValueError(f"no frame at {time / second:.2f} s")
        quarter_turns = int(getattr(frame, "rotation", 0)) // 90 % 4  # not in every PyAV
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))

    def _decode_until(self, time: int) -> VideoFrame | None:
        """Decodes forward to the frame with this time stamp; None if there is none."""
        for frame in self.frames:
            self.last = frame.pts
            if frame.pts is not None and frame.pts >= time:
                return frame if frame.pts == time else None
        self.last = None
        return None

    def close(self) -> None:
        """Closes the file."""
        self.container.close()


def _time_stamps(file: str) -> tuple[np.ndarray, float]:
    """Time stamps of all frames, int64 [frames], ascending, and units per second."""
    with _import_av().open(file) as container:
        if not container.streams.video:
            raise ValueError("no video stream in it")
        stream = container.streams.video[0]
        times = [p.pts for p in container.demux(stream) if p.pts is not None and p.size]
        return np.unique(np.array(times, np.int64)), 1 / float(stream.time_base)


def _split_rate(text: str) -> tuple[str, str | None]:
    """The path, and the frames per second after `@` as a string; None without `@`."""
    match = None if os.path.exists(text) else _RATE.fullmatch(text)
    return (match[1], match[2]) if match else (text, None)


def _only_videos(folder: str) -> bool:
    """Whether the first folder with files, in depth-first order, holds videos and no images."""
    from nolabel.data.sources._decode import SUFFIXES as IMAGES

    pending = [folder]
    while pending:
        subfolders, videos = [], False
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if is_folder(entry):
                    subfolders += [] if entry.is_symlink() else [entry.path]
                elif suffix in IMAGES:
                    return False  # at once, without listing a folder of a million images
                else:
                    videos = videos or suffix in SUFFIXES
        if videos:
            return True
        pending += sorted(subfolders, reverse=True)
    return False


def _decoding_errors() -> tuple[type[Exception], ...]:
    # TypeError and ArithmeticError: a time base that is missing or zero.
    return (
        OSError, ValueError, EOFError, TypeError, ArithmeticError, _import_av().error.FFmpegError,
    )  # fmt: skip


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError:
        raise UsageError("Reading videos needs PyAV: pip install 'nolabel[video]'.") from None
    return av

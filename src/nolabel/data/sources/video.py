"""Videos as images: some frames of every second (the extra `video`).

`clip.mp4` means one frame a second, `clip.mp4@5` five, `clip.mp4@all` every frame; a folder of
videos likewise. A frame is found again by its time, whatever was read before it. Compressed video
is made to be read forward: for training, pack the frames first (`nolabel pack --data clips@5`).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from nolabel.data import _cache
from nolabel.data._strings import encode_labels
from nolabel.data.source import Source
from nolabel.data.sources.folder import is_folder, listing
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.types import Sample

SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"))
_RATE = re.compile(r"(.+)@(all|\d+(?:\.\d+)?)")
_MAX_OPEN = 8  # videos held open in one process
# What a forked worker finds open. It is neither used nor closed there: closing waits for threads
# that only the other process has.
_inherited: list[object] = []


def is_videos(text: str) -> bool:
    """Whether a user means videos: a video file, a folder with `@`, a folder of videos alone."""
    path, rate = _split_rate(text)
    if os.path.isdir(path):
        return rate is not None or _only_videos(path)
    return os.path.splitext(path)[1].lower() in SUFFIXES and os.path.isfile(path)


class Videos(Source):
    """Frames of one or more videos, in the order of the files and of time.

    If every video of a folder lies in a sub-folder, the first level below it names the classes.
    `groups`, int64 [N], is the number of the video. A video that cannot be read counts as one
    image that cannot.

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
            raise UsageError(f"{name!r}: the frames a second must be above 0.")
        if os.path.isdir(path):
            inside, others = listing(path, SUFFIXES)
            if not inside:
                raise DataError(f"No videos in {path!r} or below it: {others:,} other files.")
            self.files = [os.path.join(os.path.abspath(path), file) for file in inside]
        else:
            inside, self.files = [os.path.basename(path)], [os.path.abspath(path)]
        self.bad: dict[int, str] = {}
        times = [self._frame_times(k) for k in range(len(self.files))]
        counts = [len(t) for t in times]
        self.times = np.concatenate(times)  # int64 [N]: time of each frame, in the video's units
        self.groups: np.ndarray = np.repeat(np.arange(len(self.files)), counts)
        tops = [file.partition("/")[0] for file in inside if "/" in file]
        if len(tops) == len(inside):
            self.classes, numbers = encode_labels(tops)
            self.labels = numbers[self.groups]
        self._reset_readers()

    def _reset_readers(self) -> None:
        """Decoders and locks stay in their process."""
        self._open: OrderedDict[int, _Reader] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    def __len__(self) -> int:
        return len(self.times)

    def path(self, i: int, /) -> str:
        """The video and the number of the frame among those that are used."""
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
        with self._lock:  # a decoder has one position
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
        """Times of the frames that are used, int64; [0] for a video that cannot be read."""
        file = self.files[video]
        try:
            key = _cache.fingerprint(file)
            arrays = _cache.load("video", key)
            if arrays is None:
                times, second = _times(file)
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
        # The frame that is seen at 0, 1 / rate, 2 / rate ... seconds from the first.
        step = float(arrays["second"]) / self.rate
        due = times[0] + step * np.arange(int((times[-1] - times[0]) / step) + 1)
        return times[np.unique(np.searchsorted(times, due + 0.5, side="right") - 1)]

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset_readers()


class _Reader:
    """One open video, decoding forward and going back to a key frame when it must."""

    def __init__(self, file: str):
        self.container = _import_av().open(file)
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "NONE"  # workers are one a core already
        self.at: int | None = None  # time of the last frame decoded
        self.frames: Any = None

    def frame(self, time: int) -> np.ndarray:
        """uint8 [H, W, 3] of the frame at this time, upright."""
        second = 1 / float(self.stream.time_base)
        found = None
        if self.at is not None and self.at < time <= self.at + 2 * second:
            found = self._forward(time)
        # A container seeks by the order of decoding, which runs ahead of that of seeing: the key
        # frame it finds may come after the frame that is looked for.
        for back in (0, 1, 4, 16, 1e9):
            if found is not None:
                break
            self.container.seek(int(max(time - back * second, 0)), stream=self.stream)
            self.frames = self.container.decode(self.stream)
            found = self._forward(time)
        if found is None:
            raise ValueError(f"no frame at {time / second:.2f} s")
        turned = int(getattr(found, "rotation", 0)) // 90 % 4
        return np.ascontiguousarray(np.rot90(found.to_ndarray(format="rgb24"), turned))

    def _forward(self, time: int) -> Any:
        """The frame at this time, among those that come next; None if there is none."""
        for frame in self.frames:
            self.at = frame.pts
            if frame.pts is not None and frame.pts >= time:
                return frame if frame.pts == time else None
        self.at = None
        return None

    def close(self) -> None:
        """Gives the file back."""
        self.container.close()


def _times(file: str) -> tuple[np.ndarray, float]:
    """Times of all frames, sorted int64, and the length of a second in the same units."""
    with _import_av().open(file) as container:
        if not container.streams.video:
            raise ValueError("no pictures in it")
        stream = container.streams.video[0]
        times = [p.pts for p in container.demux(stream) if p.pts is not None and p.size]
        return np.unique(np.array(times, np.int64)), 1 / float(stream.time_base)


def _split_rate(text: str) -> tuple[str, str | None]:
    """Path and frames a second, as written behind `@`."""
    found = None if os.path.exists(text) else _RATE.fullmatch(text)
    return (found[1], found[2]) if found else (text, None)


def _only_videos(folder: str) -> bool:
    """Whether the folder itself or the first one in it holds videos, and no images."""
    from nolabel.data.sources._decode import SUFFIXES as IMAGES

    waiting = [folder]
    while waiting:
        below, videos = [], False
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if is_folder(entry):
                    below += [] if entry.is_symlink() else [entry.path]
                elif suffix in IMAGES:
                    return False  # at once: the folder may hold a million of them
                else:
                    videos = videos or suffix in SUFFIXES
        if videos:
            return True
        waiting += sorted(below, reverse=True)
    return False


def _decoding_errors() -> tuple[type[Exception], ...]:
    return (OSError, ValueError, EOFError, _import_av().error.FFmpegError)


def _import_av() -> Any:
    try:
        import av
    except ImportError:
        raise UsageError("Reading videos needs PyAV: pip install 'nolabel[video]'.") from None
    return av

"""A folder of images as a source: quick to list, even with very many files."""

from __future__ import annotations

import os

import numpy as np

from nolabel.data._strings import StringTable
from nolabel.data.source import Source
from nolabel.data.sources._bands import BAND_SUFFIXES, read_bands
from nolabel.data.sources._decode import SUFFIXES
from nolabel.errors import DataError
from nolabel.types import Sample


class Folder(Source):
    """The images below a folder, in the order of their relative paths.

    Names that begin with a dot are ignored, and so are files whose suffix is not that of an image
    (`_decode.SUFFIXES`). Links are followed. If every image lies in a sub-folder, the first level
    below the root names the classes, sorted. No file is opened.

    With other than three `channels`, images are read by `read_bands`, arrays (.npy) among them.

    Raises:
        DataError: the folder, or one below it, cannot be listed, or holds no image.
    """

    supports_draft = True
    has_files = True

    def __init__(self, root: str | os.PathLike[str], channels: int = 3):
        self.name, self.channels = os.fspath(root), channels
        self.root = os.path.abspath(self.name)
        suffixes = SUFFIXES if channels == 3 else BAND_SUFFIXES
        files, others = listing(self.root, suffixes)
        if not files:
            seen = f"{others:,} other file{'s' * (others != 1)}" if others else "no files at all"
            raise DataError(
                f"No images in {self.name!r} or below it: {seen}. Files count as images by their "
                f"suffix: {' '.join(sorted(suffixes))}. Tar shards are named by a pattern, such "
                f"as '{self.name}/*.tar'."
            )
        self.files = StringTable.from_strings(files)
        # Sorted, files in the root may stand anywhere: "a.jpg" sorts before "cats/1.jpg".
        tops = [file.partition("/")[0] if "/" in file else None for file in files]
        if None not in tops:
            kinds = sorted({top for top in tops if top is not None})
            number = {kind: i for i, kind in enumerate(kinds)}
            self.classes = tuple(kinds)
            self.labels = np.array([number[top] for top in tops if top is not None], np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int, /) -> str:
        """Absolute path of image i."""
        return os.path.join(self.root, self.files[i])

    def read_bytes(self, i: int, /) -> bytes:
        """The file of image i as it is. Raises OSError or BadImage."""
        with open(self.path(i), "rb") as file:
            return file.read()

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, decoded. Raises BadImage."""
        image = read_bands(self.path(i), self.channels, sufficient_pixels=sufficient_pixels)
        return Sample(image=image, label=self.label(i))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: if it is named like an image, it is a bad one
        return False


def listing(root: str, suffixes: frozenset[str]) -> tuple[list[str], int]:
    """Relative paths ("/" between parts) of the images below root, sorted; number of others."""
    files: list[str] = []
    others = 0
    waiting = [(root, "")]
    seen: set[tuple[int, int]] = set()  # links may lead in circles
    while waiting:
        folder, prefix = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if is_folder(entry):
                        waiting.append((entry.path, f"{prefix}{name}/"))
                    elif os.path.splitext(name)[1].lower() in suffixes:
                        files.append(prefix + name)
                    else:
                        others += 1
        except OSError as error:
            raise DataError(
                f"The folder {folder!r} cannot be listed ({error.strerror}). Fix its permissions, "
                "or give a folder without it."
            ) from None
    files.sort()
    return files, others

"""A folder of image files as a source."""

from __future__ import annotations

import os

import numpy as np

from nolabel.data._strings import StringTable
from nolabel.data.source import Source
from nolabel.data.sources._bands import BAND_SUFFIXES, read_bands
from nolabel.data.sources._decode import SUFFIXES, read_end, read_regular
from nolabel.errors import DataError
from nolabel.types import Sample


class Folder(Source):
    """The images below a folder, in the order of their relative paths.

    Hidden files and folders (.name) are ignored, and so are files without an image suffix
    (`_decode.SUFFIXES`). Symbolic links are followed. If every image is in a sub-folder, the
    sub-folders of the root are the classes, in alphabetic order. Listing opens no file.

    Args:
        root: the folder.
        channels: number of channels C; unless it is 3, files are read by `read_bands`, and `.npy`
            arrays count as images.

    Raises:
        DataError: the folder or a sub-folder cannot be listed, or there is no image in it.
    """

    supports_draft = True
    has_files = True

    def __init__(self, root: str | os.PathLike[str], channels: int = 3):
        self.name, self.channels = os.fspath(root), channels
        self.root = os.path.abspath(self.name)
        suffixes = SUFFIXES if channels == 3 else BAND_SUFFIXES
        files, others = list_files(self.root, suffixes)
        if not files:
            content = f"{others:,} other file{'s' * (others != 1)}" if others else "no files at all"
            raise DataError(
                f"No images in {self.name!r} or below it: {content}. Files count as images by "
                f"their suffix: {' '.join(sorted(suffixes))}. For tar shards, give a pattern such "
                f"as '{self.name}/*.tar'."
            )
        self.files = StringTable.from_strings(files)
        # Every file must be checked: sorted, "a.jpg" of the root comes before "cats/1.jpg".
        tops = [file.partition("/")[0] if "/" in file else None for file in files]
        if None not in tops:
            classes = sorted({top for top in tops if top is not None})
            index = {name: i for i, name in enumerate(classes)}
            self.classes = tuple(classes)
            self.labels = np.array([index[top] for top in tops if top is not None], np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int, /) -> str:
        """Absolute path of image i."""
        return os.path.join(self.root, self.files[i])

    def read_bytes(self, i: int, /) -> bytes:
        """The encoded file of image i, unchanged. Raises OSError or BadImage."""
        return read_regular(self.path(i))

    def size_in_bytes(self, i: int, /) -> int:
        """Size of the file of image i. Raises OSError."""
        return os.path.getsize(self.path(i))

    def read_end(self, i: int, count: int, /) -> bytes:
        """The last `count` bytes of the file of image i. Raises OSError."""
        return read_end(self.path(i), count)

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, decoded. Raises BadImage."""
        image = read_bands(self.path(i), self.channels, sufficient_pixels=sufficient_pixels)
        return Sample(image=image, label=self.label(i))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a directory entry is a folder or a symbolic link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as an unreadable image if its suffix is an image's
        return False


def list_files(root: str, suffixes: frozenset[str]) -> tuple[list[str], int]:
    """Lists the files below a folder that have one of the suffixes.

    Returns:
        Paths relative to root ("/" between parts), sorted; and the number of other files.

    Raises:
        DataError: a folder cannot be listed.
    """
    files: list[str] = []
    others = 0
    pending = [(root, "")]
    visited: set[tuple[int, int]] = set()  # (device, inode): symbolic links may form cycles
    while pending:
        folder, prefix = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if is_folder(entry):
                        pending.append((entry.path, f"{prefix}{name}/"))
                    elif os.path.splitext(name)[1].lower() in suffixes:
                        files.append(prefix + name)
                    else:
                        others += 1
        except OSError as error:
            raise DataError(
                f"The folder {folder!r} cannot be listed ({error.strerror}). Fix its permissions, "
                "or use a folder that does not contain it."
            ) from None
    files.sort()
    return files, others

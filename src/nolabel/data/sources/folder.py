"""A folder of image files as a source."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter

from nolabel.data._strings import StringTable
from nolabel.data.labels import alike, encode_names
from nolabel.data.source import Source
from nolabel.data.sources._bands import BAND_SUFFIXES, read_bands
from nolabel.data.sources._decode import SUFFIXES, read_end, read_regular
from nolabel.errors import DataError, printable
from nolabel.types import Sample


class Folder(Source):
    """The images below a folder, in the order of their relative paths.

    If every image is in a sub-folder, the sub-folders of the root are the classes, in alphabetic
    order, unless they are parts of a data set (`train` and `val`, `images` and `masks`);
    `unlabelled` then says so. Hidden files and folders (.name) are ignored, and so are files
    without an image suffix (`_decode.SUFFIXES`), which are counted in `notes` if they may be
    pictures. Symbolic links are followed. Listing opens no file.

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
        count = others.total()
        if not files:
            content = f"{count:,} other file{'s' * (count != 1)}" if count else "no files at all"
            content += describe_suffixes(others)
            raise DataError(
                f"No images in {self.name!r} or below it: {content}. Files count as images by "
                f"their suffix: {' '.join(sorted(suffixes))}. For tar shards, give a pattern such "
                f"as '{self.name}/*.tar'."
            )
        self.files = StringTable.from_strings(files)
        pictures = Counter({s: n for s, n in others.items() if _may_be_pictures(s, n)})
        if pictures:
            self.notes = (
                f"{self.name}: {pictures.total():,} files that are no supported images were left "
                f"out{describe_suffixes(pictures)}",
            )
        # Every file must be checked: sorted, "a.jpg" of the root comes before "cats/1.jpg".
        tops = [file.partition("/")[0] for file in files if "/" in file]
        self.unlabelled = _why_unlabelled(self.name, files, tops)
        if not self.unlabelled:
            self.classes, self.labels = encode_names(tops)
            self.notes += alike(self.classes)

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


# Photographs, drawings, scans and videos that are not read from a folder of images.
PICTURE_LIKE = frozenset(
    (".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".xcf", ".svg", ".eps",
     ".ai", ".pdf", ".tga", ".exr", ".hdr", ".dds", ".ico", ".icns", ".pcx", ".jxr", ".wdp",
     ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf",
     ".pef", ".raw", ".x3f", ".3fr", ".kdc", ".dcr", ".mrw", ".erf", ".mef", ".iiq", ".srw", ".rwl",
     ".dcm", ".nii", ".mha", ".mhd", ".nrrd", ".fits", ".fit", ".czi", ".lif", ".nd2", ".lsm",
     ".svs", ".ndpi", ".mrxs", ".npy", ".npz", ".mat", ".h5", ".hdf5", ".zarr", ".tar", ".zip",
     ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".wmv", ".mts", ".3gp", ".parquet",
     ".tfrecord", ".lmdb")
)  # fmt: skip
_MANY = 10  # files without a suffix
_TRAIN = r"(train|training|trn|trainval)"
_REST = r"(val|valid|validation|test|testing|tst|dev|eval|evaluation|holdout|unlabell?ed|extra)"
_TAIL = r"([ _-]?(set|split|data|images?|imgs?|\d+))*"
_SPLIT = re.compile(f"{_TRAIN}{_TAIL}", re.IGNORECASE), re.compile(f"{_REST}{_TAIL}", re.IGNORECASE)
_IMAGES = re.compile(r"(images?|imgs?|jpegimages|photos?|pictures?|inputs?|rgb)", re.IGNORECASE)
_BESIDE = re.compile(
    r"(masks?|labels?|annotations?|segmentations?|segmentationclass|seg|gts?|ground[ _-]?truths?"
    r"|targets?|depths?|normals?|thumbnails?|thumbs?|previews?)", re.IGNORECASE
)  # fmt: skip


def _may_be_pictures(suffix: str, count: int) -> bool:
    """Whether files of a suffix may be pictures; a few without any are a README and its like."""
    return suffix in PICTURE_LIKE if suffix else count >= _MANY


def _why_unlabelled(name: str, files: list[str], tops: list[str]) -> str:
    """Why the sub-folders are no classes; "" if they are."""
    if len(tops) < len(files):
        if not tops:
            return "Put the images of each class into a sub-folder with the name of the class."
        stray = next(file for file in files if "/" not in file)
        return (
            f"{len(files) - len(tops):,} of the {len(files):,} images lie directly in the folder, "
            f"first {printable(stray)}, and have no class. Move them into sub-folders or out."
        )
    folders = sorted(set(tops))
    train, rest = ([f for f in folders if kind.fullmatch(f)] for kind in _SPLIT)
    if rest and (train or len(rest) == len(folders) > 1):
        first = (train or rest)[0]
        test = next(f for f in rest if f != first)
        return (
            f"Its sub-folders look like splits of a data set ({', '.join(folders[:4])}), not like "
            f"classes. Give them one by one: --train {shlex.quote(os.path.join(name, first))} "
            f"--test {shlex.quote(os.path.join(name, test))}."
        )
    images = [f for f in folders if _IMAGES.fullmatch(f)]
    beside = [f for f in folders if _BESIDE.fullmatch(f)]
    if images and len(images) + len(beside) == len(folders) > 1:
        return (
            f"Its sub-folders look like parts of a data set ({', '.join(folders[:4])}), not like "
            f"classes. Give one of them: {shlex.quote(os.path.join(name, images[0]))}."
        )
    return ""


def describe_suffixes(others: Counter[str], most: int = 6) -> str:
    """ ": 300 .heic, 30 .nef" for the commonest suffixes; "" if there are none."""
    if not others:
        return ""
    named = [f"{n:,} {suffix or 'without a suffix'}" for suffix, n in others.most_common(most)]
    more = len(others) - len(named)
    return f": {', '.join(named)}" + (f" and {more} other kinds" if more > 0 else "")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a directory entry is a folder or a symbolic link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as an unreadable image if its suffix is an image's
        return False


def list_files(root: str, suffixes: frozenset[str]) -> tuple[list[str], Counter[str]]:
    """Lists the files below a folder that have one of the suffixes.

    Returns:
        Paths relative to root ("/" between parts), sorted; and the number of other files by suffix.

    Raises:
        DataError: a folder cannot be listed.
    """
    files: list[str] = []
    others: Counter[str] = Counter()
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
                        continue
                    suffix = os.path.splitext(name)[1].lower()
                    if suffix in suffixes:
                        files.append(prefix + name)
                    else:
                        others[suffix] += 1
        except OSError as error:
            raise DataError(
                f"The folder {folder!r} cannot be listed ({error.strerror}). Fix its permissions, "
                "or use a folder that does not contain it."
            ) from None
    files.sort()
    return files, others

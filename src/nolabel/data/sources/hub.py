"""Image data sets of the Hugging Face Hub, `hf:owner/name[:split]` (the extra `hf`).

A set that is not in the local cache of the Hub yet is downloaded, without asking. The `datasets`
library stores it as memory-mapped Arrow files, from which all workers read at random. No code of a
data set is executed, and images are decoded by nolabel, like those of any other source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nolabel.data.labels import Labels, alike, clean_name, encode_names, fill_groups, read_labels
from nolabel.data.source import Source
from nolabel.data.sources._bands import read_bands
from nolabel.errors import BadImage, DataError, UsageError, unknown
from nolabel.types import Sample

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
_IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "photo", "picture", "jpg", "png")
_BESIDE = re.compile(r"mask|annot|segm|label|depth|normal|target|thumb|condition", re.IGNORECASE)
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target")
_TEXT_COLUMNS = ("text", "caption", "captions", "description", "prompt", "sentence")


class Hub(Source):
    """One split of a data set.

    The image column is the one named as in `_IMAGE_COLUMNS`, or the only one that is no mask; with
    several it must be chosen. The label column is of type ClassLabel, `label` and its like first,
    or else a plain column of these names. The columns `group` and `domain` are used as in tables.
    The text column is the first of `_TEXT_COLUMNS` that holds strings. `notes` says what was chosen
    of several.

    Args:
        name: `owner/name`, or a folder of Parquet files in the Hub's layout.
        split: name of the split, such as "train".
        channels: number of channels C of the images.
        column: the column of images; "" chooses it.

    Raises:
        UsageError: the extra is missing, or the set has no such split or no images.
        DataError: the set does not exist or cannot be downloaded.
    """

    supports_draft = True
    has_files = True

    def __init__(self, name: str, split: str = "train", channels: int = 3, column: str = ""):
        self.channels = channels
        self.name = f"{PREFIX}{name}:{split}"
        data = _load(name, split)
        features: dict[str, Any] = dict(data.features)
        images = [c for c, feature in features.items() if type(feature).__name__ == "Image"]
        if not images:
            raise UsageError(
                f"{self.name!r} has no column of images; it has: {_describe(features)}."
            )
        import datasets

        self._image = _choose_image(images, self.name, column)
        if len(images) > 1:
            others = ", ".join(c for c in images if c != self._image)
            self.notes = (f"{self.name}: images are the column {self._image}, not {others}",)
        if column:
            self.name += f":{column}"
        data = data.cast_column(self._image, datasets.Image(decode=False))
        strings = [
            c for c, f in features.items() if isinstance(f, datasets.Value) and f.dtype == "string"
        ]
        self._text = next((c for c in _TEXT_COLUMNS if c in strings), None)
        columns = [self._image] + ([self._text] if self._text else [])
        found, notes = _read_class_column(data, features)
        self.classes, self.labels, self.unlabelled, _ = found
        self.notes += notes
        for kind in ("group", "domain"):
            if type(features.get(kind)).__name__ == "Value":
                cells = list(data.select_columns([kind])[:][kind])
                texts = ["" if c is None else str(c) for c in cells]
                if kind == "group":
                    self.group_names, self.groups = encode_names(fill_groups(texts))
                elif all(texts):
                    self.domain_names, self.domains = encode_names(texts)
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


def _choose_image(images: list[str], name: str, wanted: str) -> str:
    """The column that holds the images. Raises UsageError if that is not clear."""
    if wanted:
        if wanted not in images:
            raise unknown(f"column of images in {name!r}:", wanted, images)
        return wanted
    likely = [c for c in _IMAGE_COLUMNS if c in images] or [
        c for c in images if not _BESIDE.search(c)
    ]
    if len(images) > 1 and (not likely or (likely[0] not in _IMAGE_COLUMNS and len(likely) > 1)):
        raise UsageError(
            f"{name!r} has {len(images)} columns of images: {', '.join(images)}. Choose one: "
            f"--data {name}:{images[0]}."
        )
    return likely[0] if likely else images[0]


def _read_class_column(
    data: Dataset, features: Mapping[str, Any]
) -> tuple[Labels, tuple[str, ...]]:
    """The labels of the images, and remarks on the choice of the column."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    column = next(
        (c for c in _LABEL_COLUMNS if c in classes),
        classes[0] if classes else next((c for c in _LABEL_COLUMNS if c in kinds), None),
    )
    if column is None:
        return Labels(why=f"It has no column label; its columns: {_describe(features)}."), ()
    notes: tuple[str, ...] = ()
    if len(classes) > 1:
        others = ", ".join(c for c in classes if c != column)
        notes = (f"labels are the column {column}; there are others: {others}",)

    def place(i: int) -> str:
        return f"row {i}"

    kind = f"Of the column {column} ({_kind(features[column])}), "
    values = list(data.select_columns([column])[:][column])
    if kinds[column] == "ClassLabel":
        missing = [i for i, v in enumerate(values) if v is None or v < 0]
        if not missing:
            names = tuple(clean_name(n) for n in features[column].names)
            return Labels(names, np.array(values, np.int64), "", alike(names)), notes
        texts = ["" if v is None or v < 0 else features[column].names[v] for v in values]
        found = read_labels(texts, place)
    elif kinds[column] == "Value":
        found = read_labels(["" if v is None else str(v) for v in values], place)
    else:
        return Labels(why=f"{kind}the cells hold several values or none; one class is needed."), ()
    return found._replace(why=found.why and kind + found.why), (*notes, *found.notes)


def _describe(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())


def _kind(feature: Any) -> str:
    """The type of a column, such as int64, ClassLabel or List."""
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name

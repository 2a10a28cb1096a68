"""The texts of a source's images: captions for image-text learning, without decoding an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nolabel.data.source import Source
from nolabel.errors import DataError

_CHUNK = 4096  # texts read at once
_ASKED = 64  # images, spread over the source, of which one must have a text


def texts_of(source: Source, indices: Sequence[int] | np.ndarray) -> tuple[str | None, ...]:
    """Texts of the images at `indices`, int [B]; None where an image has none or its text cannot
    be read."""
    chosen = np.asarray(indices, np.int64)
    parts = range(0, len(chosen), _CHUNK)
    return tuple(t for i in parts for t in source.read_texts(chosen[i : i + _CHUNK]))


def has_texts(source: Source) -> bool:
    """Whether some of the source's images have a text (at most 64 of them are read)."""
    return any(texts_of(source, spread(len(source), _ASKED)))


def require_texts(source: Source) -> None:
    """Refuses a source without texts.

    Raises:
        DataError: it has none; the message says where they are expected.
    """
    if not has_texts(source):
        raise DataError(
            f"{source.name!r} has no texts, which this needs. Texts are the column `text` of a "
            "table (.csv, .tsv, .parquet), the members .txt beside the images of tar shards, the "
            "captions of hf: sets, of creatures and of emoji; a source of your own overrides "
            "`read_text(i)`."
        )


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` indices below n at equal distances, int64, ascending, each once."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)

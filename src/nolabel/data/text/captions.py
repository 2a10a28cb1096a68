"""Reads the texts (captions) of a source, without decoding its images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nolabel.data.order import evenly_spaced
from nolabel.data.source import Source
from nolabel.errors import DataError

_CHUNK = 4096  # texts per call of `Source.read_texts`
_SAMPLED = 64  # evenly spaced images that `has_texts` checks


def texts_of(source: Source, indices: Sequence[int] | np.ndarray) -> tuple[str | None, ...]:
    """Texts of some images of a source.

    Args:
        source: the source.
        indices: int [B].

    Returns:
        B texts; None where an image has none or its text cannot be read.
    """
    array = np.asarray(indices, np.int64)
    starts = range(0, len(array), _CHUNK)
    return tuple(t for i in starts for t in source.read_texts(array[i : i + _CHUNK]))


def has_texts(source: Source) -> bool:
    """Whether a source has texts: whether one of 64 evenly spaced images has one."""
    return any(texts_of(source, evenly_spaced(len(source), _SAMPLED)))


def require_texts(source: Source) -> None:
    """Checks that a source has texts.

    Raises:
        DataError: it has none; the message says where texts are read from.
    """
    if not has_texts(source):
        raise DataError(
            f"{source.name!r} has no texts, which this needs. Texts are read from the column "
            "`text` of a table (.csv, .tsv, .parquet), from .txt members beside the images of tar "
            "shards, and from the captions of hf: and named sets (creatures, scenes, emoji, "
            "stamps, clipart); your own source overrides `read_text(i)`."
        )

"""The texts of a source's images: captions for image-text learning, without decoding an image.

A source that has texts offers `read_text(i)`, str or None; one that reads many more quickly at once
offers `read_texts(indices)` as well.  Labels are something else and stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nolabel.errors import BadImage, DataError

_CHUNK = 4096  # texts read at once
_LOOKED_AT = 64  # images, spread over the source, of which one must have a text


def texts_of(source: Any, indices: Sequence[int] | np.ndarray) -> tuple[str | None, ...]:
    """Texts of the images at `indices`, int [N]; None where an image has none or its text cannot
    be read."""
    which = np.asarray(indices, np.int64)
    if hasattr(source, "read_texts"):
        parts = range(0, len(which), _CHUNK)
        return tuple(t for i in parts for t in source.read_texts(which[i : i + _CHUNK]))
    if not hasattr(source, "read_text"):
        return (None,) * len(which)
    return tuple(_one(source, int(i)) for i in which)


def _one(source: Any, i: int) -> str | None:
    try:
        return source.read_text(i)
    except (BadImage, OSError):
        return None


def has_texts(source: Any) -> bool:
    """Whether some of the source's images have a text (a few of them are asked)."""
    some = spread(len(source), _LOOKED_AT)
    return any(texts_of(source, some))


def require_texts(source: Any) -> None:
    """Refuses a source without texts.

    Raises:
        DataError: It has none; the message says where they are expected.
    """
    if not has_texts(source):
        raise DataError(
            f"{source.name!r} has no texts, which this needs.  Texts are the column `text` of a "
            "table (.csv, .tsv, .parquet), the members .txt beside the images of tar shards, the "
            "captions of hf: sets, of creatures and of emoji; a source of your own has "
            "`read_text(i)`."
        )


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` indices below n at equal distances, int64, each once."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)

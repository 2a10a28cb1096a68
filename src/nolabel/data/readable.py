"""Finds the images of a source that can be read, before anything is computed from their number.

A split, an order or a draw made over all files changes when one file is damaged; made over those
that can be read, it does not.
"""

from __future__ import annotations

import numpy as np

from nolabel.data.progress import progress_bar
from nolabel.data.read_ahead import read_ahead
from nolabel.data.source import Source, Subset
from nolabel.errors import BadImage, DataError, printable

Skipped = tuple[tuple[str, str], ...]  # path and reason of each image that could not be read


class Readable(Subset):
    """The images of a source that can be read.

    Attributes:
        skipped: path and reason of each other image.
    """

    def __init__(self, source: Source, indices: np.ndarray, skipped: Skipped):
        super().__init__(source, indices)
        self.skipped = skipped


def leave_out_unreadable(source: Source) -> tuple[Source, Skipped]:
    """Decodes every image once (JPEG at an eighth of its sides, which finds the same damage).

    Args:
        source: any source; one in memory, or one that was checked before, is not read.

    Returns:
        A `Readable`, or a source that needs no check as it is; and path and reason of each
        image that is left out.

    Raises:
        DataError: no image can be read.
    """
    if source.in_memory or _was_checked(source):
        return source, ()

    def reason(i: int) -> BadImage | None:
        try:
            source.read(i, **({"sufficient_pixels": 1} if source.supports_draft else {}))
        except BadImage as error:
            return error
        return None

    bad: dict[int, BadImage] = {}
    with progress_bar(f"checking {source.name}", len(source), True) as advance:
        for i, error in enumerate(read_ahead(reason, range(len(source)), lambda _: 0)):
            if error:
                bad[i] = error
            advance(1)
    skipped = tuple((printable(e.path), e.reason) for e in bad.values())
    if len(bad) == len(source):
        first = f" First: {skipped[0][0]}: {skipped[0][1]}." if skipped else ""
        raise DataError(f"{source.name!r} has no image that can be read.{first}")
    good = np.setdiff1d(np.arange(len(source)), list(bad))
    return Readable(source, good, skipped), skipped


def describe_skipped(name: str, skipped: Skipped) -> tuple[str, ...]:
    """A note on images that were left out; none if there are none.

    Args:
        name: name of the source.
        skipped: path and reason of each.
    """
    if not skipped:
        return ()
    path, reason = skipped[0]
    return (
        f"{len(skipped):,} image(s) of {name} could not be read and were left out, first: "
        f"{printable(path)}: {reason}",
    )


def _was_checked(source: Source) -> bool:
    while isinstance(source, Subset):
        if isinstance(source, Readable):
            return True
        source = source.source
    return False

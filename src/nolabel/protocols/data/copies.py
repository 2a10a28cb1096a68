"""Data of copy detection: altered copies of any set, or folders in the layout of Copydays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from nolabel.data.open import open_source
from nolabel.data.readable import leave_out_unreadable
from nolabel.data.source import Source
from nolabel.data.sources.items import Items
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.protocols.data.attacks import ATTACKS, attacked

ORIGINALS, DISTRACTORS, WHITENING = 100, 1000, 1000  # largest numbers of images used


class LazyImages(Sequence[np.ndarray]):
    """Images uint8 [H, W, 3] that are read, and altered, whenever they are asked for.

    Args:
        source: where they come from.
        indices: which of its images, in this order; None: all.
        alter: what is done with an image and its position in `indices`.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int] | None = None,
        alter: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ):
        self.source, self.alter = source, alter
        self.indices: Sequence[int] = range(len(source)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, i: slice) -> LazyImages: ...

    def __getitem__(self, i: int | slice) -> np.ndarray | LazyImages:
        """Image i; a slice is lazy too.

        Raises:
            DataError: the image cannot be read.
        """
        if isinstance(i, slice):
            return LazyImages(self.source, self.indices[i], self.alter)
        try:
            image = self.source.read(self.indices[i]).image
        except BadImage as error:
            raise DataError(f"An image cannot be read: {error}.") from None
        return image if self.alter is None else self.alter(image, i)


@dataclass(frozen=True)
class Copies:
    """Queries by attack, the database, and images for the whitening; none is held in memory.

    Attributes:
        name: name of the set.
        queries: attack -> images uint8 [H, W, 3], and int64 [Q], the index in the database of each
            one's original.
        database: images uint8 [H, W, 3], as sets that follow each other; the originals come first.
        others: images uint8 [H, W, 3] for the whitening.
    """

    name: str
    queries: dict[str, tuple[Sequence[np.ndarray], np.ndarray]]
    database: tuple[Sequence[np.ndarray], ...]
    others: Sequence[np.ndarray]


def alter(source: Source, seed: int, whiten_on: str = "") -> Copies:
    """Makes queries from images of a set by every attack; its other images are distractors.

    Args:
        source: the images.
        seed: seed of the attacks.
        whiten_on: SRC of the images for the whitening; "" takes the rest of the set.

    Raises:
        DataError: fewer than 60 images.
    """
    n = len(source)
    if n < 60:
        raise DataError(f"{source.name!r} has {n} images; copy detection needs 60 or more.")
    original_count = min(ORIGINALS, n // 6)
    distractor_count = min(DISTRACTORS, n // 3)
    whitening_count = min(WHITENING, n - original_count - distractor_count)

    def attack(name: str, k: int) -> Callable[[np.ndarray, int], np.ndarray]:
        return lambda image, i: attacked(image, name, (seed, k, i))

    originals = range(original_count)
    queries: dict[str, tuple[Sequence[np.ndarray], np.ndarray]] = {
        name: (LazyImages(source, originals, attack(name, k)), np.arange(original_count))
        for k, name in enumerate(ATTACKS)
    }
    end = original_count + distractor_count
    database = (
        LazyImages(source, originals),
        _later_frames(source, original_count),
        LazyImages(source, range(original_count, end)),
    )
    others = (
        LazyImages(leave_out_unreadable(open_source(whiten_on))[0])
        if whiten_on
        else LazyImages(source, range(end, end + whitening_count))
    )
    return Copies(f"{source.name} (altered)", queries, database, others)


def _later_frames(source: Source, count: int) -> list[np.ndarray]:
    """Later frames of the first `count` creatures; none for other sources."""
    from nolabel.data.creatures.videos import draw_video
    from nolabel.data.creatures.world import Creatures

    if not isinstance(source, Creatures):
        return []
    size, split, seed = source.size, source.split, source.seed
    return [
        draw_video(i, frames=5, size=size, creatures=1, split=split, seed=seed)[0][4]
        for i in range(count)
    ]


def copydays(folder: Path, distractors: str, whiten_on: str = "") -> Copies:
    """Opens a folder in the layout of Copydays.

    Args:
        folder: has the folder `original`, and folders of copies, which may have a folder for each
            strength.
        distractors: SRC of other images, added to the database; without `whiten_on` the second half
            of them is for the whitening instead.
        whiten_on: SRC of images for the whitening.

    Raises:
        DataError: no copies, or copies without original.
        UsageError: no distractors.
    """
    originals = sorted(p for p in (folder / "original").iterdir() if p.is_file())
    numbers = {p.stem[:4]: i for i, p in enumerate(originals)}
    queries: dict[str, tuple[Sequence[np.ndarray], np.ndarray]] = {}
    for attack_folder in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "original"):
        groups = sorted(p for p in attack_folder.iterdir() if p.is_dir()) or [attack_folder]
        for group in groups:
            files = sorted(p for p in group.iterdir() if p.is_file())
            unmatched = [p.name for p in files if p.stem[:4] not in numbers]
            if unmatched:
                raise DataError(
                    f"{str(group)!r} has {len(unmatched)} images whose first four digits no "
                    f"original has, first {unmatched[0]!r}. Copies are named after their originals."
                )
            name = (
                attack_folder.name
                if group == attack_folder
                else f"{attack_folder.name} {group.name}"
            )
            source = Items([str(p) for p in files], name)
            targets = np.array([numbers[p.stem[:4]] for p in files])
            if len(files):
                queries[name] = (LazyImages(source), targets)
    if not queries or not originals:
        raise DataError(f"{str(folder)!r} has no copies beside its folder 'original'.")
    if not distractors:
        raise UsageError(
            "Copydays needs --distractors, a SRC of other images that are added to the database; "
            "half of them are for the whitening instead, unless --whiten-on names others."
        )
    more = LazyImages(leave_out_unreadable(open_source(distractors))[0])
    others = (
        LazyImages(leave_out_unreadable(open_source(whiten_on))[0])
        if whiten_on
        else more[len(more) // 2 :]
    )
    if not whiten_on:
        more = more[: len(more) // 2]
    if not len(more) or not len(others):
        raise UsageError(
            f"{distractors!r} has too few images: two or more are needed, or --whiten-on."
        )
    source = Items([str(p) for p in originals], "original")
    return Copies(str(folder), queries, (LazyImages(source), more), others)

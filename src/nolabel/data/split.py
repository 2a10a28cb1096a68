"""Splits a labelled source in two parts that share nothing: groups and equal images stay together.

Images of one patient, one video or one camera position are more alike than images of two, so that
a classifier that has seen some of them recognises the others: its score says nothing about new
patients. A group is therefore never divided, and neither are copies of one image.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nolabel.data.copies import number_equal_images
from nolabel.data.order import index_at
from nolabel.data.source import Source, Subset, require_labels
from nolabel.errors import DataError, UsageError


def split(
    source: Source, fraction: float, seed: int = 0, *, units: np.ndarray | None = None
) -> tuple[Subset, Subset]:
    """Splits a labelled source in two, stratified by class and deterministically.

    Args:
        source: a source with labels.
        fraction: share of every class in the second part, in (0, 1). A class of two or more
            units is present in both parts; a class of one unit is in the first only.
        seed: seed of the random split.
        units: int64 [N], equal for images that stay in one part; None makes every image a unit.

    Returns:
        The first part, with about 1 - fraction of the images, and the second, each in the source's
        order. Where every image is a unit the shares are exact, but for rounding.

    Raises:
        UsageError: a fraction outside (0, 1).
        DataError: the source has no labels, or one class only; or no class has two units.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"The fraction to split off must lie between 0 and 1, got {fraction}.")
    labels = require_labels(source)
    second = np.zeros(len(labels), dtype=bool)
    if units is None or len(np.unique(units)) == len(units):
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            # Not NumPy's generator, whose streams may change between versions.
            second[members[index_at(seed, int(label), np.arange(count), len(members))]] = True
    else:
        second = _split_units(labels, np.asarray(units), fraction, seed)
    if not second.any():
        raise DataError(_describe_failure(source, labels, units))
    return Subset(source, np.flatnonzero(~second)), Subset(source, np.flatnonzero(second))


def independent_units(source: Source) -> tuple[np.ndarray | None, int]:
    """What must stay together in a split: groups, and equal images.

    Args:
        source: any source.

    Returns:
        Units int64 [N], equal for images of one group, for equal images, and for groups that share
        an image (None if every image is a unit of its own); and the number of images that repeat
        another.
    """
    (equal,) = number_equal_images(source)
    repeats = len(equal) - len(np.unique(equal))
    if not repeats:
        return source.groups, 0
    if source.groups is None:
        return equal, repeats
    # Images and groups are the two kinds of nodes of a graph; each image is an edge.
    groups = np.unique(source.groups, return_inverse=True)[1] + len(equal)
    nodes = int(groups.max()) + 1
    graph = coo_matrix((np.ones(len(equal)), (equal, groups)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][equal].astype(np.int64), repeats


def _split_units(labels: np.ndarray, units: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which images are in the second part, bool [N]; no unit is divided.

    Units are tried in a random order and taken while they bring the classes nearer to their share;
    a class that is still missing then gets the unit that costs the other classes least.
    """
    classes, y = np.unique(labels, return_inverse=True)
    names, unit_of = np.unique(units, return_inverse=True)
    count = np.zeros((len(names), len(classes)), np.int64)  # images of each class in each unit
    np.add.at(count, (unit_of, y), 1)
    members = (count > 0).sum(0)  # units of each class
    sizes = count.sum(0)
    target = np.clip(np.round(fraction * sizes).astype(np.int64), 1, np.maximum(sizes - 1, 1))
    missing = target.copy()
    left = members.copy()  # units of each class that are still in the first part
    taken = np.zeros(len(names), bool)

    def cost(unit: int) -> int:
        """Change of the distance from the targets; below 0 is nearer."""
        return int((np.abs(missing - count[unit]) - np.abs(missing)).sum())

    def may_leave(unit: int) -> bool:
        """Whether no class would lose its last unit in the first part."""
        return bool((left - (count[unit] > 0) >= 1)[count[unit] > 0].all())

    def take(unit: int) -> None:
        taken[unit] = True
        missing[:] -= count[unit]
        left[:] -= count[unit] > 0

    order = index_at(seed, 0, np.arange(len(names)), len(names))
    for unit in order.tolist():
        if cost(unit) < 0 and may_leave(unit):
            take(unit)
    for c in range(len(classes)):
        if members[c] > 1 and not count[taken, c].any():
            possible = [u for u in order.tolist() if count[u, c] and may_leave(u)]
            if possible:
                take(min(possible, key=cost))
    return taken[unit_of]


def _describe_failure(source: Source, labels: np.ndarray, units: np.ndarray | None) -> str:
    """Why nothing can be split off: no class has two units."""
    classes = np.unique(labels)
    if units is None or len(classes) == len(labels):
        shown = [source.classes[int(c)] if source.classes else str(c) for c in classes[:3]]
        return (
            f"{source.name!r}: {len(labels)} images have {len(classes)} different labels "
            f"({', '.join(shown)}, ...), so that no class has two images, one to learn from and "
            "one to test on. If the labels are measurements or names, sort them into classes "
            "first."
        )
    return (
        f"{source.name!r}: every class lies in one group alone, or is copies of one image "
        f"({len(classes)} classes, {len(np.unique(units))} groups), and groups are never divided. "
        "Give a test set of other groups (--test)."
    )

"""An order for data on slow disks: shuffled blocks of neighbours, mixed within a window.

Images 0 .. n-1 are cut into blocks of neighbours. An epoch shuffles the blocks, takes them a
window of several blocks at a time, and shuffles the images of a window. So a disk is read in
large pieces, while a batch still mixes images from all blocks of its window. Like the plain order
it is a pure function of (seed, epoch, position), and holds each image exactly once.
"""

from __future__ import annotations

import functools

import numpy as np

from nolabel.data.order import index_at

WINDOW = 16  # blocks mixed with each other
_BLOCKS, _WITHIN = 0x626C_6F63_6B73_0000, 0x7769_6E64_6F77_0000  # families of permutations


def block_index_at(
    seed: int, epoch: int, k: np.ndarray, n: int, block: int, window: int = WINDOW
) -> np.ndarray:
    """The images at positions k of an epoch.

    Args:
        seed: any integer.
        epoch: 0-based epoch.
        k: positions, int [K], each in [0, n).
        n: number of images.
        block: images in a block; the last block may be shorter.
        window: blocks in a window.

    Returns:
        int64 [K]; over k = 0..n-1 every value in [0, n) occurs exactly once.
    """
    k = np.asarray(k, dtype=np.int64)
    blocks = -(-n // block)
    order = _order(seed, epoch, blocks)
    gap = blocks * block - n  # images that the short block lacks
    place = int(np.flatnonzero(order == blocks - 1)[0])  # where the short block comes
    short = place // window  # its window
    span = window * block
    end = min((short + 1) * span, blocks * block) - gap  # first position behind that window
    which = np.where(k < end, k // span, (k + gap) // span)
    out = np.empty_like(k)
    for w in np.unique(which).tolist():
        here = which == w
        first = w * span - (gap if w > short else 0)
        size = min(span, blocks * block - w * span) - (gap if w == short else 0)
        local = index_at(seed, epoch, k[here] - first, size, stream=_WITHIN + w)
        if w == short:  # slots behind the short block move on by what it lacks
            local = np.where(local < (place - w * window + 1) * block - gap, local, local + gap)
        out[here] = order[w * window + local // block] * block + local % block
    return out


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    return index_at(seed, epoch, np.arange(blocks), blocks, stream=_BLOCKS)

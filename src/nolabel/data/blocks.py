"""Block-wise shuffling for data on slow disks.

Images 0 .. n-1 are divided into blocks of consecutive images. An epoch shuffles the blocks, groups
them into windows of several blocks, and shuffles the images within each window. The disk is read in
large consecutive pieces, while a batch still mixes images from all blocks of its window. Like
`order.index_at` this is a pure function of (seed, epoch, position) and a permutation: each image
comes exactly once per epoch.
"""

from __future__ import annotations

import functools

import numpy as np

from nolabel.data.order import index_at

WINDOW = 16  # blocks whose images are shuffled together
# Streams of `index_at`: of the order of blocks, and of the images within a window.
_BLOCK_STREAM, _WINDOW_STREAM = 0x626C_6F63_6B73_0000, 0x7769_6E64_6F77_0000


def block_index_at(
    seed: int, epoch: int, k: np.ndarray, n: int, block: int, window: int = WINDOW
) -> np.ndarray:
    """The images at positions k of an epoch, shuffled block by block.

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
    order = _block_order(seed, epoch, blocks)
    missing = blocks * block - n  # images by which the last block of the data is short
    short_block = int(np.flatnonzero(order == blocks - 1)[0])  # its position in the order
    short_window = short_block // window
    span = window * block
    end = min((short_window + 1) * span, blocks * block) - missing  # end of the short window
    window_of = np.where(k < end, k // span, (k + missing) // span)
    out = np.empty_like(k)
    for w in np.unique(window_of).tolist():
        rows = window_of == w
        first = w * span - (missing if w > short_window else 0)
        size = min(span, blocks * block - w * span) - (missing if w == short_window else 0)
        local = index_at(seed, epoch, k[rows] - first, size, stream=_WINDOW_STREAM + w)
        if w == short_window:  # positions after the short block skip its missing images
            short_end = (short_block - w * window + 1) * block - missing
            local = np.where(local < short_end, local, local + missing)
        out[rows] = order[w * window + local // block] * block + local % block
    return out


@functools.lru_cache(maxsize=4)
def _block_order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    return index_at(seed, epoch, np.arange(blocks), blocks, stream=_BLOCK_STREAM)

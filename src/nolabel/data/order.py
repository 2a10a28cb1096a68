"""In which order the images come: a pure function of (seed, epoch, position).

No list of indices is ever shuffled or stored. Position k of an epoch goes through a keyed
bijection of [0, 2^b) - a Feistel network - and is sent through it again until it lands below n
(cycle walking), which makes it a bijection of [0, n): each image exactly once per epoch, in
constant memory, in any order of asking, on any number of workers and processes.
"""

from __future__ import annotations

import numpy as np

from nolabel.nn.splitmix64 import GOLDEN, MASK, mix, mix_int

_ROUNDS = 8  # four are the least for a pseudo-random permutation of wide halves; ours are narrow
_SMALLEST_BITS = 6  # halves of one or two bits would reach too few of the permutations
_REPLACEMENT = 0x7265_706C_6163_6564  # keeps the two uses of one seed apart


def index_at(seed: int, epoch: int, k: int | np.ndarray, n: int, *, stream: int = 0) -> np.ndarray:
    """The image at position k of an epoch.

    Args:
        seed: any integer; 64 bits of it count.
        epoch: 0-based epoch.
        k: positions, int [...], each in [0, n).
        n: number of images.
        stream: another family of permutations under the same seed.

    Returns:
        int64 of k's shape, in [0, n). Over k = 0..n-1 every value occurs exactly once.

    Raises:
        ValueError: n < 1, or a position outside [0, n).
    """
    positions = np.asarray(k, dtype=np.int64)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if positions.size and (positions.min() < 0 or positions.max() >= n):
        raise ValueError(f"positions must lie in [0, {n})")
    if n == 1:
        return np.zeros_like(positions)
    bits = max((n - 1).bit_length(), _SMALLEST_BITS)
    keys = _round_keys(seed, epoch, stream)
    values = positions.reshape(-1).astype(np.uint64)
    _feistel(values, bits, keys)
    outside = np.flatnonzero(values >= n)
    while outside.size:  # at most half of the domain lies outside, save for very small n
        again = values[outside]
        _feistel(again, bits, keys)
        values[outside] = again
        outside = outside[again >= n]
    return values.astype(np.int64).reshape(positions.shape)


def steps_per_epoch(batch_size: int, n: int) -> int:
    """Whole batches in an epoch; the rest of the images wait for another epoch's order."""
    return n // batch_size


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> tuple[int, np.ndarray]:
    """The images of one global batch.

    Args:
        seed: seed of the run.
        step: 0-based optimiser step, counted over the whole run.
        batch_size: images in the global batch B, at most n.
        n: number of images.

    Returns:
        The 0-based epoch of this step, and int64 [B]. The last n % batch_size positions of an
        epoch are dropped; they hold other images in every epoch.

    Raises:
        ValueError: a batch larger than the data, or a negative step.
    """
    if not 1 <= batch_size <= n or step < 0:
        raise ValueError(f"no batch of {batch_size} from {n} images at step {step}")
    epoch, batch = divmod(step, steps_per_epoch(batch_size, n))
    first = batch * batch_size
    return epoch, index_at(seed, epoch, np.arange(first, first + batch_size), n)


def replacement(seed: int, epoch: int, index: int, attempt: int, n: int) -> int:
    """The image that replaces one that cannot be read.

    The replacements of one image are all different and never the image itself, until attempts run
    past n - 1. They depend on nothing but the arguments, so that every worker agrees.

    Args:
        seed: seed of the run.
        epoch: 0-based epoch.
        index: the image that cannot be read.
        attempt: 0 for the first replacement, 1 for the next when that one is bad too, ...
        n: number of images.
    """
    if n == 1:
        return 0
    other = int(index_at(seed, epoch, attempt % (n - 1), n - 1, stream=_REPLACEMENT + index))
    return other + (other >= index)  # skips the image itself


def _round_keys(seed: int, epoch: int, stream: int) -> list[np.uint64]:
    state = 0
    for word in (seed, epoch, stream):  # absorbed one after the other: (1, 2) is not (2, 1)
        state = mix_int((state ^ (word & MASK)) + GOLDEN)
    keys = []
    for _ in range(_ROUNDS):
        state = (state + GOLDEN) & MASK
        keys.append(np.uint64(mix_int(state + GOLDEN)))
    return keys


def _feistel(values: np.ndarray, bits: int, keys: list[np.uint64]) -> None:
    """Replaces values, uint64 [N] below 2^bits, by their images under the network, in place.

    The halves differ by one bit when `bits` is odd; each round changes one half by a hash of the
    other, which can always be undone, hence a bijection.
    """
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for i, key in enumerate(keys):
        if i % 2 == 0:
            high ^= mix(low ^ key) & high_mask
        else:
            low ^= mix(high ^ key) & low_mask
    np.bitwise_or(high << low_bits, low, out=values)

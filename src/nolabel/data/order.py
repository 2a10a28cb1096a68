"""Stateless shuffling: the image at a position is a pure function of (seed, epoch, position).

No list of indices is shuffled or stored. Position k of an epoch is mapped by a keyed bijection of
[0, 2^b), a Feistel network, repeatedly until the result is below n (cycle walking; Black and
Rogaway, Ciphers with Arbitrary Finite Domains, 2002). This is a bijection of [0, n): each image
comes exactly once per epoch, in constant memory and with random access, for any number of workers
and ranks.
"""

from __future__ import annotations

import numpy as np

from nolabel.nn.splitmix64 import GOLDEN, MASK, mix, mix_int

_ROUNDS = 8  # 4 suffice in theory (Luby and Rackoff) for wide halves; these halves are narrow
_MIN_BITS = 6  # halves of one or two bits would give too few distinct permutations
_REPLACEMENT_STREAM = 0x7265_706C_6163_6564  # replacements are independent of the epoch's order


def index_at(seed: int, epoch: int, k: int | np.ndarray, n: int, *, stream: int = 0) -> np.ndarray:
    """The image at position k of an epoch.

    Args:
        seed: any integer; its lowest 64 bits are used.
        epoch: 0-based epoch.
        k: positions, int [...], each in [0, n).
        n: number of images.
        stream: number of an independent family of permutations under the same seed.

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
    bits = max((n - 1).bit_length(), _MIN_BITS)
    keys = _round_keys(seed, epoch, stream)
    values = positions.reshape(-1).astype(np.uint64)
    _feistel(values, bits, keys)
    outside = np.flatnonzero(values >= n)
    while outside.size:  # at most half of the domain, except for very small n
        again = values[outside]
        _feistel(again, bits, keys)
        values[outside] = again
        outside = outside[again >= n]
    return values.astype(np.int64).reshape(positions.shape)


def steps_per_epoch(batch_size: int, n: int) -> int:
    """Complete batches in an epoch; the remaining n % batch_size images are dropped."""
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
        epoch are dropped; which images they hold differs from epoch to epoch.

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

    The first n - 1 replacements of an image are distinct, and none of them is the image itself.
    They depend on the arguments only, so that all workers and ranks agree.

    Args:
        seed: seed of the run.
        epoch: 0-based epoch.
        index: the image that cannot be read.
        attempt: 0 for the first replacement, 1 for the second if that is unreadable too, ...
        n: number of images.

    Returns:
        An index in [0, n).
    """
    if n == 1:
        return 0
    other = int(index_at(seed, epoch, attempt % (n - 1), n - 1, stream=_REPLACEMENT_STREAM + index))
    return other + (other >= index)  # skips the image itself


def _round_keys(seed: int, epoch: int, stream: int) -> list[np.uint64]:
    state = 0
    for word in (seed, epoch, stream):  # one after the other, so that (1, 2) and (2, 1) differ
        state = mix_int((state ^ (word & MASK)) + GOLDEN)
    keys = []
    for _ in range(_ROUNDS):
        state = (state + GOLDEN) & MASK
        keys.append(np.uint64(mix_int(state + GOLDEN)))
    return keys


def _feistel(values: np.ndarray, bits: int, keys: list[np.uint64]) -> None:
    """Applies an alternating Feistel network to values, uint64 [N] below 2^bits, in place.

    Each round XORs one half with a hash of the other, which is invertible, so that the network is a
    bijection. The halves differ by one bit when `bits` is odd.
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


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """Evenly spaced, distinct indices in [0, n), ascending: int64 [min(n, count)]."""
    return np.arange(n) if n <= count else np.linspace(0, n - 1, count).astype(np.int64)

"""SplitMix64 as a counter-based hash: stateless random bits from a key.

Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014. The generator adds
`GOLDEN` to a counter and hashes it with a finaliser; here only the finaliser is used, so that a
random number is a function of its key. Arithmetic is modulo 2^64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MASK = (1 << 64) - 1
GOLDEN = 0x9E37_79B9_7F4A_7C15  # 2^64 / golden ratio: the increment of the counter
_FIRST, _SECOND = 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser: a bijection in which each input bit flips each output bit half the time.

    Args:
        x: uint64 of any shape but [], as numpy warns of overflow in scalars.

    Returns:
        uint64 of the same shape.
    """
    x = x ^ (x >> np.uint64(30))  # a copy, modified in place below
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    return x


def mix_int(x: int) -> int:
    """`mix` of the lowest 64 bits of a Python integer; in [0, 2^64)."""
    x &= MASK
    x = ((x ^ (x >> 30)) * _FIRST) & MASK
    x = ((x ^ (x >> 27)) * _SECOND) & MASK
    return x ^ (x >> 31)

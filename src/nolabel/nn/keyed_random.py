"""Random numbers that depend on their key alone, so that nothing of them need be saved or shared.

What an image gets does not depend on the rest of its batch: neither on its order, nor on how many
workers read it or processes train on it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from nolabel import distributed
from nolabel.nn.splitmix64 import GOLDEN, MASK, mix, mix_int


def uniform(
    seed: int, epoch: int, samples: npt.ArrayLike, stream: int, slots: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on their key only.

    Args:
        seed: seed of the run.
        epoch: epoch; any integer.
        samples: keys of the samples, integers [B].
        stream: number of an independent stream, such as one copy of one view.
        slots: numbers per sample.

    Returns:
        float64 [B, slots], with 53 random bits each.
    """
    state = 0
    for part in (seed, epoch, stream):
        state = mix_int((state + GOLDEN) ^ (int(part) & MASK))
    keys = np.asarray(samples).astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64 on purpose
        start = mix(keys * np.uint64(GOLDEN) + np.uint64(state))
        steps = np.arange(1, slots + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        bits = mix(start[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class KeyedRandom:
    """Uniform numbers for the images of a step, each image's by itself.

    Seeded from torch's generator, whose state a checkpoint holds and all processes share. An
    image's numbers depend on the seed and on its place in the whole batch.

    Args:
        n: images of this process.
        copies: rows for each image, view by view: rows are copies * n.
        seed: instead of torch's next number.
    """

    def __init__(self, n: int, copies: int = 1, seed: int | None = None):
        self.seed = int(torch.randint(2**63 - 1, ()).item()) if seed is None else seed
        self.rows = distributed.global_rows(n, copies).numpy()  # among those of all processes
        self.total = len(self.rows) * distributed.world_size()
        self._turn = 0

    def __call__(self, slots: int, which: np.ndarray | None = None) -> npt.NDArray[np.float64]:
        """The next `slots` numbers in [0, 1) of some rows (all by default), [rows, slots]."""
        self._turn += 1
        rows = self.rows if which is None else self.rows[which]
        return uniform(self.seed, self._turn, rows, 0, slots)

    def of_all(self) -> np.random.Generator:
        """A generator for what is drawn for all rows together; the same on every process."""
        return np.random.default_rng(self.seed)

    def seeds(self) -> list[int]:
        """A number below 2^53 for each row, to seed generators with."""
        return (self(1)[:, 0] * 2**53).astype(np.int64).tolist()

"""Counter-based random numbers: a pure function of a key, without a state to save or share.

An image's numbers do not depend on the order of its batch, on the number of workers that load it,
or on the number of ranks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nolabel import distributed
from nolabel.nn.splitmix64 import GOLDEN, MASK, mix, mix_int


def uniform(
    seed: int, epoch: int, samples: npt.ArrayLike, stream: int, slots: int
) -> npt.NDArray[np.float64]:
    """Uniform random numbers, a pure function of (seed, epoch, sample, stream, slot).

    Args:
        seed: of the run.
        epoch: any integer.
        samples: keys of the samples, integers [B].
        stream: number of an independent stream, such as a copy of a view.
        slots: numbers for each sample.

    Returns:
        float64 [B, slots] in [0, 1), with 53 random bits each.
    """
    state = 0
    for part in (seed, epoch, stream):
        state = mix_int((state + GOLDEN) ^ (int(part) & MASK))
    keys = np.asarray(samples).astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64 on purpose
        first_bits = mix(keys * np.uint64(GOLDEN) + np.uint64(state))
        steps = np.arange(1, slots + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        bits = mix(first_bits[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class KeyedRandom:
    """Uniform random numbers for the images of a step, the same for any number of ranks.

    An image's numbers depend on the seed and on its row in the whole batch. The seed is drawn from
    torch's generator, whose state is saved in checkpoints and equal on all ranks.

    Args:
        n: images of this rank.
        copies: rows for each image, view by view: copies * n rows.
        seed: instead of one drawn from torch's generator.

    Attributes:
        rows: int64 [copies * n], this rank's rows among those of all ranks.
        total: number of rows of all ranks.
    """

    def __init__(self, n: int, copies: int = 1, seed: int | None = None):
        self.seed = int(torch.randint(2**63 - 1, ()).item()) if seed is None else seed
        self.rows = distributed.global_rows(n, copies).numpy()  # among those of all processes
        self.total = len(self.rows) * distributed.world_size()
        self._turn = 0

    def __call__(self, slots: int, which: np.ndarray | None = None) -> npt.NDArray[np.float64]:
        """New numbers in [0, 1) for this rank's rows, float64 [rows, slots].

        Args:
            slots: numbers for each row.
            which: int64, only some of the rows; by default all.
        """
        self._turn += 1
        rows = self.rows if which is None else self.rows[which]
        return uniform(self.seed, self._turn, rows, 0, slots)

    def global_generator(self) -> np.random.Generator:
        """A generator for what is drawn once for the whole batch; equal on all ranks."""
        return np.random.default_rng(self.seed)

    def seeds(self) -> list[int]:
        """A seed in [0, 2^53) for each of this rank's rows."""
        return (self(1)[:, 0] * 2**53).astype(np.int64).tolist()


def gumbel(logits: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape of logits [B, ...]: -log of an exponential variable."""
    noise = torch.empty_like(logits)
    draws = torch.Generator(logits.device)
    for row, seed in zip(noise, KeyedRandom(len(logits)).seeds(), strict=True):
        row.exponential_(generator=draws.manual_seed(seed))
    return -noise.log()

"""Checks whether training destroys the network of `--init` (`--init-guard`).

The features of a fixed set of images are compared with those before training, by linear CKA
(Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, arXiv 1905.00414)
and by their effective rank. Features change in a good run too; they count as destroyed if both
values are below `LIMIT`, or if k-NN (`--probe`) falls by more than `FALL` below its start.
`--init-guard` chooses what follows: nothing, a warning, or a roll-back to the last good weights and
the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from nolabel._files import save_tensors
from nolabel.backbones.base import Backbone
from nolabel.data.decoded import enough_pixels, shrink
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.engine.monitor.signals import effective_rank
from nolabel.errors import BadImage, DataError
from nolabel.views.plan import ViewPlan

IMAGES = 256  # whose features are compared
MIN_IMAGES = 8  # fewer are too few to compare
LIMIT = 0.5  # of CKA, and of the effective rank relative to the start
FALL = 0.05  # of k-NN top-1, as a fraction
FILE = "start.safetensors"  # the first features, in the run's folder


class InitCheck(NamedTuple):
    """How similar the features are to those before training."""

    similarity: float  # linear CKA of the features, 0 to 1
    rank: float  # their effective rank, as a fraction of that of the start
    destroyed: str = ""  # why it counts as destroyed; empty if it does not


def similarity(a: Tensor, b: Tensor) -> float:
    """Linear CKA of features [N, D] and [N, E] of the same images: 1 for features that are equal up
    to rotation and scale, near 0 for unrelated ones."""
    a, b = (z.double() - z.double().mean(0) for z in (a, b))
    cross = (a.T @ b).square().sum()
    norms = (a.T @ a).norm() * (b.T @ b).norm()
    return float(cross / norms) if norms > 0 else 0.0


class InitGuard:
    """Compares the network with that of --init, and keeps the last good weights.

    Args:
        folder: of the run; the first features are saved in it, for resuming.
        encoder: the evaluated branch.
        plan: for the mean and std of the images.
        source: the images; some are taken, evenly spread.
        probe: returns a network's k-NN top-1 as a fraction; None without a probe.

    Raises:
        DataError: too few images can be read.
    """

    def __init__(
        self,
        folder: Path,
        encoder: Backbone,
        plan: ViewPlan,
        source: Source,
        probe: Callable[[Backbone, ViewPlan], float] | None,
    ):
        indices = np.linspace(0, len(source) - 1, min(IMAGES, len(source))).astype(int)
        images: list[np.ndarray] = []
        enough = enough_pixels(Encoder(encoder).image_size)
        for i in indices:
            try:
                images.append(shrink(source.read(int(i)).image, enough))
            except BadImage:
                continue
        if len(images) < MIN_IMAGES:
            raise DataError(
                f"{source.name!r} has fewer than {MIN_IMAGES} readable images, too few for "
                "--init-guard. Use --init-guard off."
            )
        self.plan, self.images = plan, images
        file = folder / FILE
        if file.is_file():
            saved = load_file(file)
        else:
            saved = {"features": self._features(encoder)}
            if probe:
                saved["probe"] = torch.tensor(probe(encoder, plan), dtype=torch.float64)
            save_tensors(saved, file)
        self.features = saved["features"]
        self.rank = effective_rank(self.features)
        self.probe = float(saved["probe"]) if "probe" in saved else None
        self.good_step, self.good_state = 0, self._state(encoder)

    def _features(self, encoder: Backbone) -> Tensor:
        """Pooled features [N, D] of the fixed images."""
        e = Encoder(encoder, mean=self.plan.mean, std=self.plan.std)
        return torch.cat([
            e.forward(e.prepare_pixels(self.images[i : i + 64]))
            for i in range(0, len(self.images), 64)
        ]).clone()  # fmt: skip

    @staticmethod
    def _state(encoder: Backbone) -> dict[str, Tensor]:
        state: dict[str, Tensor] = encoder.state_dict()
        return {k: v.detach().cpu().clone() for k, v in state.items()}

    def check(self, step: int, encoder: Backbone, probe: float | None) -> InitCheck:
        """Compares the network after `step` steps; saves its weights if it counts as good.

        Args:
            probe: its k-NN top-1 as a fraction, if measured.
        """
        z = self._features(encoder)
        finite = bool(torch.isfinite(z).all())
        cka = similarity(self.features, z) if finite else 0.0
        rank = effective_rank(z) / self.rank if finite else 0.0
        why = ""
        if self.probe is not None and probe is not None and probe < self.probe - FALL:
            why = f"k-NN fell from {self.probe:.1%} to {probe:.1%}"
        if cka < LIMIT and rank < LIMIT:
            why = (
                f"the features' CKA with those before training is {cka:.2f}, their effective rank "
                f"{rank:.0%} of the rank before training"
            )
        if not why:
            self.good_step, self.good_state = step, self._state(encoder)
        return InitCheck(cka, rank, why)

    def roll_back(self, encoder: Backbone) -> int:
        """Loads the last good weights into the network; returns their step."""
        encoder.load_state_dict(self.good_state)
        return self.good_step

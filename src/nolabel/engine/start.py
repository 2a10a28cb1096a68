"""Continuing from given weights (`--init`): new heads first, and a watch over what was known.

New heads have random weights, and their gradients would spoil a network that is good already.  So
for the first steps (`--warm-heads`) the network stands still and the heads alone learn.

After that the features of a fixed set of images are compared with those of the start, by linear CKA
(Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, arXiv 1905.00414)
and by their effective rank.  A network that learns something new moves away too; it is called
destroyed where both are below `LIMIT` of what they were, or where the k-NN curve (`--probe`) falls
by more than `FALL` below its start.  `--init-guard` says what follows: nothing, a warning, or going
back to the last good network and stopping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.encoders.encoder import Encoder
from nolabel.engine.health import effective_rank
from nolabel.engine.log import say
from nolabel.errors import BadImage, DataError
from nolabel.methods.base import Method
from nolabel.views.plan import ViewPlan

IMAGES = 256  # that are looked at
LEAST = 8  # fewer say nothing
LIMIT = 0.5  # of similarity and of effective rank
FALL = 0.05  # of the k-NN curve, in shares of one
WARM = 0.05  # share of the run in which heads alone learn, unless told
FILE = "start.safetensors"  # the first features, in the run's folder


def backbones(method: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of all networks of a method, heads left out."""
    for module in method.modules():
        if isinstance(module, Backbone):
            yield from module.parameters()


def similarity(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two sets of features [N, D] and [N, E] of the same images: 1 for equal ones up
    to rotation and scale, near 0 for unrelated ones."""
    a, b = (z.double() - z.double().mean(0) for z in (a, b))
    cross = (a.T @ b).square().sum()
    own = (a.T @ a).norm() * (b.T @ b).norm()
    return float(cross / own) if own > 0 else 0.0


class StartGuard:
    """Watches what becomes of the network that a run began with.

    Args:
        folder: Of the run; the first features are kept there for a resumed one.
        encoder: The branch to judge.
        plan: How images are prepared.
        source: Of which the images are taken, evenly.
        probe: Top-1 of the k-NN curve for a network, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        encoder: Backbone,
        plan: ViewPlan,
        source: Source,
        probe: Callable[[Backbone, ViewPlan], float] | None,
    ):
        where = np.linspace(0, len(source) - 1, min(IMAGES, len(source))).astype(int)
        images = []
        for i in where:
            try:
                images.append(source.read(int(i)).image)
            except BadImage:
                continue
        if len(images) < LEAST:
            raise DataError(f"{source.name!r} has too few images that can be read to watch --init.")
        self.plan, self.images = plan, images
        file = folder / FILE
        if file.is_file():
            kept = load_file(file)
        else:
            kept = {"features": self._features(encoder)}
            if probe:
                kept["probe"] = torch.tensor(probe(encoder, plan), dtype=torch.float64)
            save_file(kept, file)
        self.first = kept["features"]
        self.rank = effective_rank(self.first)
        self.probe = float(kept["probe"]) if "probe" in kept else None  # at the start
        self.good = (0, self._state(encoder))  # step and weights

    def _features(self, encoder: Backbone) -> Tensor:
        e = Encoder(encoder, mean=self.plan.mean, std=self.plan.std)
        return torch.cat([
            e.forward(e.prepare_pixels(self.images[i : i + 64]))
            for i in range(0, len(self.images), 64)
        ]).clone()  # fmt: skip

    @staticmethod
    def _state(encoder: Backbone) -> dict[str, Tensor]:
        state: dict[str, Tensor] = encoder.state_dict()
        return {k: v.detach().cpu().clone() for k, v in state.items()}

    def look(self, step: int, encoder: Backbone, probe: float | None) -> dict[str, Any]:
        """Similarity, share of the rank, and why the network is destroyed, or None."""
        z = self._features(encoder)
        finite = bool(torch.isfinite(z).all())
        alike = similarity(self.first, z) if finite else 0.0
        rank = effective_rank(z) / self.rank if finite else 0.0
        why = None
        if self.probe is not None and probe is not None and probe < self.probe - FALL:
            why = f"k-NN fell from {self.probe:.1%} to {probe:.1%}"
        if alike < LIMIT and rank < LIMIT:
            why = (
                f"features are like those of the start by {alike:.2f} (CKA) only, and have "
                f"{rank:.0%} of their effective rank"
            )
        if why is None:
            self.good = (step, self._state(encoder))
        return {"init_similarity": alike, "init_rank": rank, "why": why}

    def go_back(self, encoder: Backbone) -> int:
        """Puts the last good network in place; the step that it is of."""
        step, state = self.good
        encoder.load_state_dict(state)
        return step


def warm_heads(run: Run, method: Method, quiet: bool) -> Run:
    """Settles for how long new heads learn alone before a network that `--init` brought."""
    s = run.settings
    if not s.init or s.warm_heads is not None:
        return run
    steps = 0 if method.continued else max(round(WARM * int(s.steps or 0)), 1)
    if steps and not quiet:
        say(f"init: the new heads alone learn in the first {steps} steps")
    return dataclasses.replace(run, settings=dataclasses.replace(s, warm_heads=steps))

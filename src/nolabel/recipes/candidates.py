"""The candidates of a tournament: methods and views from which a run chooses by trial.

The first one is what the rule takes (`engine.fit.automatic_method`); short runs compare only the
first two, so the order counts. A candidate changes the automatic recipe of its method, which is
fitted to the images first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method with some options of its own.

    Attributes:
        name: in the lines and files of a tournament.
        method: a built-in name.
        why: on which images it may be the best.
        options: values that replace those of the automatic recipe.
        times: factors of the recipe's values, for options that are fitted to the images.
        smaller: whether it takes the network below the one that `engine.fit` chose.
    """

    name: str
    method: str
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    smaller: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is its method as any run takes it."""
        return not (self.options or self.times or self.smaller)

    def changes(self, recipe: object) -> dict[str, Any]:
        """The options that differ from those of the recipe.

        Args:
            recipe: the method's `Options`, as the automatic recipe has them.
        """
        scaled = {name: factor * getattr(recipe, name) for name, factor in self.times.items()}
        own = {**self.options, **scaled}
        return {name: value for name, value in own.items() if getattr(recipe, name) != value}


# k-NN of two minutes on `resnet_nano` (benchmarks/results/methods.json), creatures and
# Fashion-MNIST: simclr 52 and 79, triplet 46 and 78, barlow 42 and 78, autoencoder 33 and 79, byol
# 30 and 77, mocov3 30 and 78. The last two learn too slowly at first for short rounds.
SMALL = (
    Candidate(
        name="simclr", method="simclr",
        why="learns most within minutes on a CPU",
    ),
    Candidate(
        name="simclr-whole", method="simclr", options={"scale": (0.6, 1.0)},
        why="large crops, for images whose kind is in the outline, which small crops cut off",
    ),
    Candidate(
        name="barlow", method="barlow",
        why="has no negatives, so images of one kind are not pushed apart",
    ),
    Candidate(
        name="simclr-colour", method="simclr", times={"strength": 0.4, "grey": 0.2},
        why="weak changes of colour, for images whose kind is in their colour",
    ),
    Candidate(
        name="simclr-smaller", method="simclr", smaller=True,
        why="more steps of a smaller network",
    ),
)  # fmt: skip

# For networks and lengths of a GPU. No measurement ranks them yet; the order is that of the
# published k-NN of ViTs after hundreds of epochs of ImageNet.
LARGE = (
    Candidate(name="dino", method="dino", why="is the choice for a GPU"),
    Candidate(
        name="simclr", method="simclr",
        why="does not depend on a teacher's schedule, which short runs cut off",
    ),
    Candidate(
        name="mae", method="mae",
        why="needs no crops and no colours, so none can hide what the kinds differ by",
    ),
)  # fmt: skip


def candidates(*, on_gpu: bool) -> tuple[Candidate, ...]:
    """The candidates for this machine, the rule's choice first."""
    return LARGE if on_gpu else SMALL


def described(candidate: Candidate) -> dict[str, Any]:
    """Built-in types, for a file."""
    return {k: v for k, v in dataclasses.asdict(candidate).items() if v}

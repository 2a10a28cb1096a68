"""The automatic choice of network and image size for a run of M minutes: a ladder of both.

A larger network on larger images learns better features from the same number of steps, and makes
fewer steps in the same time. The ladder lists pairs of network and image size, cheapest first. The
run takes the most expensive one that still makes `enough_steps`. How long a step takes is measured
on the machine (`nolabel.engine.fit`), so that the same rule chooses a small network for ten minutes
of a laptop and a large one for a night of a GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

PROPOSED_MINUTES = 40.0  # length of a run for which none is asked


@dataclass(frozen=True)
class Rung:
    """A network and an image size."""

    backbone: str  # a preset
    image_size: int  # pixels
    patch_size: int | None = None  # of a ViT, pixels; None: the network's own
    cost: float = 1.0  # multiplications of an image, relative to resnet_nano at 32 px (22 million)

    def __str__(self) -> str:
        return f"{self.backbone} at {self.image_size} px"


@dataclass(frozen=True)
class Choice:
    """The rung that a run takes, and the reason."""

    rung: Rung
    steps: int  # about so many fit into the run
    next: Rung | None = None  # the next one, for which the time is too short
    next_steps: int = 0
    before: Rung | None = None  # the one below, of which more steps fit


# Convolutional networks with the input sizes that they are used for, cheapest first.
_SMALL_CONV = (Rung("resnet_nano", 32), Rung("resnet_mini", 32, cost=3.1))
_MIDDLE_CONV = (
    Rung("resnet_nano", 32),
    Rung("resnet_micro", 64, cost=1.3),
    Rung("resnet_tiny", 64, cost=3.5),
    Rung("resnet_mini", 64, cost=12.6),
)
_LARGE_CONV = (
    Rung("resnet_micro", 64, cost=1.3),
    Rung("resnet_micro", 96, cost=3.0),
    Rung("resnet_tiny", 96, cost=7.8),
    Rung("resnet_tiny", 128, cost=13.9),
    Rung("resnet18", 128, cost=26.8),
    Rung("resnet18", 224, cost=82.0),
    Rung("resnet50", 224, cost=185.0),
)


def ladder(needs: Set[str], side: int, *, vit: bool) -> tuple[Rung, ...]:
    """The rungs for a method and for images of some size, cheapest first.

    Args:
        needs: what the method needs of a backbone (`Method.needs`).
        side: median of the images' shorter sides, in pixels.
        vit: whether it takes a ViT (`recipes.takes_vit`), else a ResNet.
    """
    if not vit:
        if side < 48:
            size = 28 if 26 <= side < 30 else 32
            return tuple(dataclasses.replace(r, image_size=size) for r in _SMALL_CONV)
        return _MIDDLE_CONV if side < 96 else _LARGE_CONV
    size = 32 if side < 48 else 64
    several_views = "mask" not in needs or "any_size" in needs
    tokens = 16 if several_views else 64  # of vit_pico
    rungs = [
        Rung("vit_pico", size, max(size // math.isqrt(tokens), 1), cost=0.2 * tokens / 16),
        Rung("vit_nano", size, size // 8, cost=3.5),
        Rung("vit_micro", size, size // 8, cost=12.0),
    ]
    if side >= 96:
        rungs += [
            Rung("vit_micro", 96, 8, cost=27.0),
            Rung("vit_tiny", 160, cost=25.0),
            Rung("vit_small", 224, cost=200.0),
            Rung("vit_base", 224, cost=800.0),
        ]
    return tuple(rungs)


def enough_steps(needs: Set[str]) -> int:
    """Optimiser steps that a run should make: more for methods that mask, whose task is harder.

    500 steps of SimCLR with 256 images, `resnet_micro` at 64 px, brought k-NN on 2,400 images of a
    tissue-like texture from 69.0 % (random start) to 95.5 %; 1,000 steps of 128: 96.2 % (one seed).
    """
    return 2000 if needs & {"mask", "drop"} else 600


def choose(
    rungs: Sequence[Rung],
    steps_of: Callable[[Rung], int],
    enough: int,
) -> Choice:
    """The most expensive rung with enough steps; the cheapest one if none has.

    Args:
        rungs: cheapest first.
        steps_of: the number of steps that fit into the run, measured. It is called in order, and
            not for the rungs after the first one that is too expensive.
        enough: steps that the run should make.
    """
    best = Choice(rungs[0], steps_of(rungs[0]))
    if best.steps < enough:
        return best
    for rung in rungs[1:]:
        steps = steps_of(rung)
        if steps < enough:
            return dataclasses.replace(best, next=rung, next_steps=steps)
        best = Choice(rung, steps, before=best.rung)
    return best

"""The choice of network and image size: the most expensive one with enough steps."""

from __future__ import annotations

import pytest

from nolabel import methods, recipes
from nolabel.backbones.presets import PRESETS
from nolabel.methods import METHODS
from nolabel.recipes.ladder import Rung, choose, enough_steps, ladder

RUNGS = (Rung("a", 32), Rung("b", 64), Rung("c", 96))


@pytest.mark.parametrize(
    ("steps", "taken", "next_one"),
    [((5000, 1200, 400), "b", "c"), ((900, 300, 100), "a", None), ((9000, 8000, 7000), "c", None)],
    ids=["between", "a slow machine takes the cheapest", "a fast machine takes the largest"],
)
def test_the_most_expensive_rung_with_enough_steps_is_taken(steps, taken, next_one):
    table = dict(zip(RUNGS, steps, strict=True))
    choice = choose(RUNGS, table.__getitem__, 1000)
    assert choice.rung.backbone == taken
    assert (choice.next.backbone if choice.next else None) == next_one
    assert choice.steps == table[choice.rung]


def test_rungs_that_are_too_expensive_are_not_measured():
    asked = []
    choose(RUNGS, lambda rung: asked.append(rung) or (2000 if rung.backbone == "a" else 10), 1000)
    assert [r.backbone for r in asked] == ["a", "b"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("side", [16, 28, 64, 300, 3000])
def test_every_method_has_rungs_that_it_can_use(name, side):
    kind = methods.load(name)
    rungs = ladder(kind.needs, side, vit=recipes.takes_vit(kind))
    assert len(set(rungs)) == len(rungs) >= 2
    for rung in rungs:
        assert rung.backbone in PRESETS
        if rung.patch_size:
            assert rung.image_size % rung.patch_size == 0
        if kind.needs & {"mask", "drop"}:
            assert rung.backbone.startswith("vit")
    assert enough_steps(kind.needs) >= 500

"""Recipes of users' own methods, and the figures beside the built-in ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import stdev

import pytest

from nolabel import methods, recipes
from nolabel.errors import UsageError
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.methods.simclr import SimCLR
from nolabel.types import Optim

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CONTEXT = RecipeContext(image_size=32, images=1000)


class Plain(Method):
    """No recipe at all."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        weight: float = 2.0


def test_a_method_without_recipes_gets_the_general_one_for_both():
    for name in ("auto", "paper"):
        r = recipes.recipe(Plain, name, CONTEXT)
        assert r.options == Plain.Options() and r.optim.lr == 1e-3
        assert (r.batch_size, r.epochs) == (250, 100)
    assert recipes.automatic(Plain, RecipeContext(image_size=32, images=2)).batch_size == 1


def test_a_users_method_may_give_its_own_recipes():
    class Own(Plain):
        @classmethod
        def automatic_recipe(cls, context):
            return Recipe(options=cls.Options(weight=3.0), optim=Optim(), batch_size=7, epochs=1)

        @classmethod
        def paper_recipe(cls, context):
            return Recipe(options=cls.Options(), optim=Optim(), batch_size=4096, epochs=800)

    assert recipes.automatic(Own, CONTEXT).options.weight == 3.0
    assert recipes.paper(Own, CONTEXT).batch_size == 4096


def test_a_class_derived_from_a_built_in_method_takes_its_recipe_with_its_own_options():
    class Derived(SimCLR):
        @dataclass(frozen=True, kw_only=True)
        class Options(SimCLR.Options):
            extra: int = 5

    r = recipes.automatic(Derived, CONTEXT)
    assert type(r.options) is Derived.Options and r.options.extra == 5
    assert r.options.temperature == recipes.automatic(SimCLR, CONTEXT).options.temperature


def test_the_old_way_to_give_a_recipe_is_refused_rather_than_ignored():
    class Old(Plain):
        @classmethod
        def recipe(cls, name, facts):
            raise AssertionError

    for name in ("auto", "paper"):
        with pytest.raises(UsageError, match="automatic_recipe"):
            recipes.recipe(Old, name, CONTEXT)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(UsageError, match="'paper'"):
        recipes.recipe(Plain, "papr", CONTEXT)


def mean(values: Iterable[float]) -> float:
    """As docs/methods.md rounds it: `statistics.mean` is exact, and 52.25 would become 52.2."""
    values = list(values)
    return sum(values) / len(values)


def measured() -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """(method, network, data) -> mean and deviation of k-NN, and the untrained network's."""
    cells: dict[tuple[str, ...], list[dict]] = {}
    for key, row in json.loads((RESULTS / "methods.json").read_text())["rows"].items():
        cells.setdefault(tuple(key.split()[:3]), []).append(row)
    return {
        key: (
            mean(r["knn"] for r in runs),
            stdev(r["knn"] for r in runs),
            mean(r["random_knn"] for r in runs),
        )
        for key, runs in cells.items()
    }


LINE = re.compile(
    r"^ +(resnet_nano|vit_pico) +(\S+) +([\d.]+) ± ([\d.]+)  \(([\d.]+)\)(  below random)?$", re.M
)


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_automatic_recipe_tells_what_it_gave_and_where_it_is_below_random(method):
    text = import_module(f"nolabel.recipes.{method}").automatic.__doc__
    expected = {(method, net, data): rest for net, data, *rest in LINE.findall(text)}
    figures = {key: value for key, value in measured().items() if key[0] == method}
    assert expected.keys() == figures.keys()
    for key, (knn, deviation, random) in figures.items():
        below = "  below random" if knn < random else ""
        numbers = [f"{100 * x:.1f}" for x in (knn, deviation, random)]
        assert expected[key] == [*numbers, below], key

"""Recipes: a method's options, optimiser, batch size and length, for a given context.

"paper", and "paper-NAME" where there is more than one, are on the method's page
(`Method.paper_recipe`); "auto" is the module of this package that has the method's name. A user's
own method gives its own by `automatic_recipe`, or takes `general`.

Each module's docstring gives the measured results of its recipe, from
benchmarks/results/methods.json (`python benchmarks/methods.py`): images of 32 pixels, as many steps
as fit into two minutes of one CPU thread, three seeds, the networks `resnet_nano` and `vit_pico`
with patches of 4 pixels. The numbers are top-1 accuracies of k-NN (k = 20) on test images, mean and
standard deviation over the seeds; in brackets that of the same network before training. Chance is
10 %. Automatic recipes for more than 96 pixels were not measured yet. The numbers are those of
`--no-fit-views`: a run fits the views to its images (`nolabel.recipes.suited`), which changes them
on fashion-mnist, whose images are grey, and not on creatures.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Protocol, cast

from nolabel.errors import UsageError, unknown
from nolabel.methods import METHODS
from nolabel.methods.base import Method, Recipe, RecipeContext
from nolabel.methods.capabilities import Tokenizes
from nolabel.recipes.choices import batch_size, epoch_steps
from nolabel.recipes.network import (
    default_image_size,
    default_network,
    default_patch,
    limited_warmup,
)
from nolabel.recipes.suited import suited
from nolabel.types import Optim

__all__ = [
    "automatic",
    "default_image_size",
    "default_network",
    "default_patch",
    "general",
    "is_name",
    "limited_warmup",
    "paper",
    "recipe",
    "takes_vit",
]

NAMES = ("auto", "paper")
METHODS_PACKAGE = "nolabel.methods"


class _Module(Protocol):
    """The interface of each module of this package; a module may set `VIT` (`takes_vit`)."""

    def automatic(self, method: type[Method], context: RecipeContext) -> Recipe: ...


def takes_vit(method: type[Method]) -> bool:
    """Whether the automatic network of a method is a ViT on a CPU, too.

    It is for methods that hide or drop patches, for tokenizers, whose tokens are patches, and where
    the module of the recipe says so. In minutes of a CPU the others learn more with a ResNet.
    """
    if method.needs & {"mask", "drop", "attention"} or issubclass(method, Tokenizes):
        return True
    module = _module(method)
    return module is not None and getattr(module, "VIT", False)


def recipe(method: type[Method], name: str, context: RecipeContext) -> Recipe:
    """The recipe of a method that has this name: "auto", "paper" or "paper-VARIANT".

    Raises:
        UsageError: another name.
    """
    names = (*NAMES, *(f"paper-{variant}" for variant in method.paper_variants))
    if name not in names:
        raise unknown("recipe", name, names)
    if name == "auto":
        return automatic(method, context)
    variant = name.removeprefix("paper").removeprefix("-")
    return paper(method, dataclasses.replace(context, variant=variant))


def is_name(recipe: str) -> bool:
    """Whether a setting names a recipe of this package, not a file."""
    return recipe in NAMES or recipe.startswith("paper-")


def paper(method: type[Method], context: RecipeContext) -> Recipe:
    """The paper's recipe; `general` for a method that defines none."""
    _refuse_old_name(method)
    return method.paper_recipe(context) or general(method, context)


def automatic(method: type[Method], context: RecipeContext) -> Recipe:
    """Settings chosen for the data, the network, the machine and the length.

    A class derived from a built-in method takes that method's, with its own Options. The warm-up is
    at most a tenth of a run whose length is known.
    """
    _refuse_old_name(method)
    found = suited(_automatic(method, context), context.operations)
    if context.steps is None:
        return found
    per_epoch = epoch_steps(context, found.batch_size)
    optim = limited_warmup(found.optim, context.steps, per_epoch)
    return dataclasses.replace(found, optim=optim)


def _automatic(method: type[Method], context: RecipeContext) -> Recipe:
    if (own := method.automatic_recipe(context)) is not None:
        return own
    module = _module(method)
    return general(method, context) if module is None else module.automatic(method, context)


def _module(method: type[Method]) -> _Module | None:
    """The module of this package for a method, or for the built-in one that it is derived from."""
    for base in method.__mro__:
        package, _, name = base.__module__.rpartition(".")
        if package == METHODS_PACKAGE and name in METHODS:
            return cast(_Module, import_module(f"nolabel.recipes.{name}"))
    return None


def general(method: type[Method], context: RecipeContext) -> Recipe:
    """AdamW with common settings, for methods without a recipe."""
    optim = Optim(lr=1e-3, warmup_epochs=1.0, lr_end=0.0, weight_decay=0.05)
    batch = batch_size(context, 256)
    return Recipe(options=method.Options(), optim=optim, batch_size=batch, epochs=100)


def _refuse_old_name(method: type[Method]) -> None:
    """Refuses a user's method that defines the former `recipe(name, facts)`, now never called."""
    if any("recipe" in vars(base) for base in method.__mro__):
        raise UsageError(
            f"{method.__name__} defines recipe(name, facts), which is no longer called. Define "
            "automatic_recipe(context), and paper_recipe(context) if there is a paper."
        )

"""No automatic recipe asks Sinkhorn-Knopp for many more prototypes than there are rows."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nolabel import methods, recipes
from nolabel.methods.base import RecipeContext
from nolabel.nn.assignment import sinkhorn

CONTEXTS = [
    RecipeContext(image_size=size, images=images, batch_size=batch, conv=conv, device=device,
                  patch_size=patch)
    for size, images, batch, conv, device, patch in itertools.product(
        (32, 96, 224), (100, 1000, 100_000), (None, 16, 256), (False, True), ("cpu", "cuda"),
        (4, 16),
    )
]  # fmt: skip


def rows(name: str, batch: int, options) -> dict[str, tuple[int, int]]:
    """Prototypes, and rows that are assigned together, of each assignment by Sinkhorn-Knopp."""
    if name == "swav":
        return {"crop": (options.prototypes, batch + options.queue)}
    if getattr(options, "centring", "") != "sinkhorn":
        return {}
    return {"class tokens of both crops": (options.prototypes, 2 * batch)}


@pytest.mark.parametrize("name", methods.METHODS)
def test_prototypes_are_at_most_one_and_a_half_times_the_rows_that_are_assigned(name):
    for context in CONTEXTS:
        recipe = recipes.automatic(methods.load(name), context)
        for what, (prototypes, assigned) in rows(name, recipe.batch_size, recipe.options).items():
            assert 2 <= prototypes <= 1.5 * assigned, (what, context)


def right_mass(assigned: int, prototypes: int) -> float:
    """Mean mass on the prototype that a row was made from, cosine 0.7 with it."""
    g = torch.Generator().manual_seed(0)
    c = F.normalize(torch.randn(prototypes, 128, generator=g), dim=-1)
    own = torch.randint(prototypes, (assigned,), generator=g)
    noise = F.normalize(torch.randn(assigned, 128, generator=g), dim=-1)
    q = sinkhorn(F.normalize(c[own] + noise, dim=-1) @ c.T, 0.05)
    return q[torch.arange(assigned), own].mean().item()


def test_assignments_of_the_automatic_recipe_are_as_sharp_as_the_papers():
    paper = right_mass(4096, 3000)
    assert right_mass(128, 1000) < 0.3 * paper
    for device in ("cpu", "cuda"):
        context = RecipeContext(image_size=96, images=50_000, device=device)
        recipe = recipes.automatic(methods.load("swav"), context)
        o = recipe.options
        assert right_mass(recipe.batch_size + o.queue, o.prototypes) > 0.9 * paper

"""The cost model: its formulas against real optimisers, its measurements against hand counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nolabel import methods, recipes
from nolabel.config import Request
from nolabel.data.creatures.world import Creatures
from nolabel.engine import cost
from nolabel.engine.build import build
from nolabel.engine.describe import describe
from nolabel.engine.optimiser import build_optimiser
from nolabel.engine.resolve import resolve
from nolabel.engine.synthetic import build_on, noise_batch
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.tools import plan, scan
from nolabel.types import Batch, Optim, Step

OPTIMS = [Optim(name=name) for name in ("adamw", "sgd", "lars", "larc")]
OPTIMS += [Optim(name="sgd", beta1=0.0)]


def named(optim):
    return f"{optim.name}-{optim.beta1:g}"


@pytest.mark.parametrize("optim", OPTIMS, ids=named)
@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_memory_of_the_state_is_what_a_step_leaves_behind(name, optim):
    kind = methods.load(name)
    options = recipes.automatic(
        kind, RecipeContext(image_size=32, images=1000, patch_size=4)
    ).options
    method = build_on(kind, options, "vit_pico", 32)
    optimiser = build_optimiser(method, optim)
    method.step(noise_batch(kind.views(options, 32), 4), cost.LATE).loss.backward()
    gradients = sum(p.grad.nbytes for p in method.parameters() if p.grad is not None)
    optimiser.step()
    moments = sum(
        value.nbytes
        for state in optimiser.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim  # a step's number is no moment
    )
    weights = sum(t.nbytes for t in (*method.parameters(), *method.buffers()) if t.ndim)
    found = cost.state_memory(*cost.state_elements(method), optim)
    assert found["moments"] == moments
    assert found["gradients"] == gradients
    assert found["weights"] == pytest.approx(weights, rel=1e-4)  # buffers may be whole numbers


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(UsageError, match="larc"):
        cost.moments_of(Optim(name="adam"))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "larc"])
def test_plan_scan_and_the_description_of_a_run_agree(name, monkeypatch):
    """Earlier versions had three models, which disagreed for SGD and LARS."""
    kind = methods.load("simclr")
    context = RecipeContext(image_size=32, images=64, batch_size=32, patch_size=4)
    recipe = recipes.automatic(kind, context)
    own = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, name=name, lr=0.1))
    monkeypatch.setattr(kind, "automatic_recipe", classmethod(lambda cls, context: own))
    source = Creatures("train", size=32, count=64)
    given = {"data": "creatures", "out": "unused", "backbone": "vit_pico", "patch_size": 4,
             "image_size": 32, "batch_size": 32, "precision": "fp32", "steps": 2}  # fmt: skip
    resolved = resolve(Request.of("simclr", **given), source=source)
    built = build(resolved)
    run, method, views = built.run, built.method, built.plan
    expected = cost.state_memory(*cost.state_elements(method), run.optim)
    planned = plan.plan("simclr", backbone="vit_pico", image_size=32, patch_size=4, batch_size=32,
                        recipe="auto", images=64, precision="fp32")["memory"]  # fmt: skip
    assert {k: planned[k] for k in expected} == pytest.approx(expected)
    printed = describe(built, resolved)
    assert f"{sum(expected.values()) / 1e6:,.0f} MB of weights" in printed
    few = noise_batch(views, 8)
    activations = cost.extrapolated_activations(method, few, 32)
    assert activations == pytest.approx(planned["activations"], rel=0.02)
    # A scan chooses the network, and resolves everything by itself.
    found = scan.suggest(source, "simclr")
    names = ("backbone", "image_size", "patch_size")
    chosen = {k: found[k] for k in names if found[k] is not None}
    request = Request.of("simclr", data=source.name, out="unused", steps=2, **chosen)
    built = build(resolve(request, source=source))
    run, method, views = built.run, built.method, built.plan
    expected = cost.state_memory(*cost.state_elements(method), run.optim)
    expected["activations"] = cost.extrapolated_activations(method, noise_batch(views, 8), 32)
    assert found["memory_bytes"] == pytest.approx(sum(expected.values()), rel=0.02)


def test_memory_of_activations_is_what_the_backward_pass_needs():
    """A linear layer keeps its input, a squared output keeps itself; weights do not count."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1000, 3000)

        def step(self, batch, clock):
            return Step(self.layer(batch.views["v"][0]).square().sum(), {})

    batch = Batch(views={"v": torch.randn(1, 8, 1000)})
    assert cost.activation_bytes(Net(), batch) == pytest.approx(8 * 4 * (1000 + 3000), rel=0.05)
    assert cost.extrapolated_activations(Net(), batch, 80) == pytest.approx(
        80 * 4 * (1000 + 3000), rel=0.05
    )

"""BYOL: the loss against a naive loop, and the properties that must not be lost."""

from __future__ import annotations

import math

import pytest
import torch

from nolabel import recipes
from nolabel.backbones import build
from nolabel.engine.monitor.signals import effective_rank
from nolabel.engine.step import apply_update
from nolabel.methods.base import RecipeContext
from nolabel.methods.byol import BYOL, regression_loss
from nolabel.nn.schedules import momentum
from nolabel.types import Batch, Clock, Optim

CLOCK = Clock(3, 10, 2)


def make(**changes):
    torch.manual_seed(0)
    options = BYOL.Options(**{"hidden": 32, "projection": 16, **changes})
    return BYOL(build("resnet_nano", image_size=32), options)


def batch(seed=0, b=6):
    g = torch.Generator().manual_seed(seed)
    return Batch(views={"view": torch.randn(2, b, 3, 32, 32, generator=g)})


def naive(q, z):
    """Equation 2 in the words of the paper: squared distance of the normalised vectors."""
    total = 0.0
    for a, b in zip(q.tolist(), z.tolist(), strict=True):
        na, nb = (math.sqrt(sum(v * v for v in x)) for x in (a, b))
        total += sum((x / na - y / nb) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(q)


def test_loss_equals_the_naive_loop():
    g = torch.Generator().manual_seed(0)
    q, z = torch.randn(2, 7, 16, generator=g).double()
    assert regression_loss(q, z).item() == pytest.approx(naive(q, z), rel=1e-6)


def test_step_adds_both_directions_of_the_prediction():
    m, data = make(), batch()
    x1, x2 = data.views["view"]
    q1, q2 = (m.predictor(m.online(x)) for x in (x1, x2))
    z1, z2 = m.target(x1), m.target(x2)
    expected = naive(q1.detach(), z2) + naive(q2.detach(), z1)
    assert m.step(data, CLOCK).loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_norm_of_the_small_recipe_stands_behind_both_projectors():
    m = make(projection_norm=True)
    z = m.online(batch().views["view"][0])
    assert torch.allclose(z.mean(0), torch.zeros(16), atol=1e-5)
    assert torch.allclose(z.std(0, correction=0), torch.ones(16), atol=1e-2)
    assert torch.allclose(m.target(batch().views["view"][0]), z, atol=1e-5)
    assert recipes.automatic(
        BYOL, RecipeContext(image_size=32, images=1000)
    ).options.projection_norm
    assert not BYOL.paper_recipe(RecipeContext(image_size=224, images=1000)).options.projection_norm


def test_target_starts_equal_and_gets_no_gradient():
    m = make()
    for a, b in zip(m.online.parameters(), m.target.parameters(), strict=True):
        assert torch.equal(a, b)
    m.step(batch(), CLOCK).loss.backward()
    assert all(p.grad is None for p in m.target.parameters())
    assert all(p.grad is not None for p in m.online.parameters())


def test_target_moves_only_by_the_moving_average():
    m = make(target_momentum=0.9)
    before = [p.clone() for p in m.target.parameters()]
    with torch.no_grad():
        for p in m.online.parameters():
            p.add_(1.0)
    m.step(batch(), CLOCK)
    assert all(torch.equal(a, b) for a, b in zip(before, m.target.parameters(), strict=True))
    m.after_update(CLOCK)
    tau = momentum(0.9, CLOCK)
    for a, b in zip(before, m.target.parameters(), strict=True):
        torch.testing.assert_close(b, a + (1 - tau))


def test_momentum_rises_to_one():
    m = make(target_momentum=0.99)
    values = [m.momentum(Clock(i, 100, 10)) for i in (0, 50, 100)]
    assert values == [pytest.approx(0.99), pytest.approx(0.995), 1.0]


def test_without_stop_gradient_everything_collapses_and_the_signals_see_it():
    """With it, the same steps leave the embeddings spread."""
    rank = {}
    for stop in (True, False):
        m = make(stop_gradient=stop, target_momentum=0.9)
        optimiser = torch.optim.AdamW(m.parameters(), lr=3e-3)
        for i in range(60):
            m.step(batch(i % 3, 16), Clock(i, 60, 10)).loss.backward()
            apply_update(m, optimiser, Optim(), Clock(i, 60, 10))
        with torch.no_grad():
            z = m.online.eval()(batch(9, 32).views["view"][0])
        z = torch.nn.functional.normalize(z, dim=-1)
        rank[stop] = effective_rank(z - z.mean(0)), float(z.std(0).mean())
    assert rank[False][1] < 0.5 * rank[True][1], rank


def test_paper_recipe_has_the_papers_numbers():
    r = BYOL.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    assert (r.optim.name, r.optim.lr, r.optim.weight_decay) == ("lars", pytest.approx(3.2), 1.5e-6)
    assert (r.options.target_momentum, r.options.hidden, r.options.projection) == (0.996, 4096, 256)
    (view,) = BYOL.views(r.options, 224).views
    assert (view.blur, view.solarise, view.scale) == ((1.0, 0.1), (0.0, 0.2), (0.08, 1.0))

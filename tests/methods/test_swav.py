"""SwAV: official numbers, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.engine.step import apply_update
from nolabel.methods.base import RecipeContext
from nolabel.methods.swav import SwAV
from nolabel.nn.assignment import sinkhorn
from nolabel.nn.losses import cross_entropy_views
from nolabel.types import Batch, Clock, Optim

ORACLE = Path(__file__).parents[1] / "oracles" / "swav.safetensors"
CLOCK = Clock(4, 10, 2)


def make(**changes):
    torch.manual_seed(0)
    base = {"prototypes": 12, "hidden": 32, "projection": 16, "local_crops": 2, "local_size": 16}
    return SwAV(build("resnet_nano", image_size=32), SwAV.Options(**{**base, **changes}))


def batch(seed=0, b=6):
    g = torch.Generator().manual_seed(seed)
    large, small = (torch.randn(2, b, 3, s, s, generator=g) for s in (32, 16))
    return Batch(views={"global": large, "local": small})


def test_assignment_loss_and_gradient_match_the_official_numbers():
    o = load_file(ORACLE)
    scores = o["scores"].unflatten(0, (4, 5)).requires_grad_()
    q = torch.stack([sinkhorn(scores[t], 0.05, 3) for t in range(2)])
    torch.testing.assert_close(q[0], o["q0"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(q[1], o["q1"], rtol=1e-4, atol=1e-6)
    loss = cross_entropy_views(q, scores / 0.1)
    (grad,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(loss, o["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.flatten(0, 1), o["grad"], rtol=1e-4, atol=1e-6)


def test_local_crops_reach_the_loss():
    m, data = make(), batch()
    local = data.views["local"].requires_grad_()
    m.step(data, CLOCK).loss.backward()
    assert local.grad.abs().sum() > 0


def test_prototypes_have_unit_length_at_birth_and_after_every_update():
    m = make(freeze_prototypes=0)
    optimiser = torch.optim.SGD(m.parameters(), lr=1.0)
    ones = torch.ones(12)
    torch.testing.assert_close(m.prototypes.weight.norm(dim=1), ones)
    before = m.prototypes.weight.clone()
    m.step(batch(), CLOCK).loss.backward()
    apply_update(m, optimiser, Optim(), CLOCK)
    torch.testing.assert_close(m.prototypes.weight.norm(dim=1), ones)
    assert not torch.allclose(m.prototypes.weight, before)


def test_prototypes_do_not_move_in_the_first_steps():
    m = make(freeze_prototypes=5)
    for step, frozen in ((4, True), (5, False)):
        clock = Clock(step, 10, 2)
        m.step(batch(), clock).loss.backward()
        m.before_update(clock)
        assert (m.prototypes.weight.grad is None) is frozen


def test_queue_joins_the_assignment_once_it_is_full_and_not_the_loss():
    m = make(queue=12, queue_from_epoch=1)
    m.eval()
    without = m.step(batch(3), CLOCK).loss
    for step in range(2, 4):  # epoch 1: two updates of six fill twelve places
        assert not m.queues[0].full
        m.step(batch(step), Clock(step, 10, 2))
        m.after_update(Clock(step, 10, 2))
    assert m.queues[0].full
    z = m.queues[0].value
    torch.testing.assert_close(z.norm(dim=1), torch.ones(12))
    out = m.step(batch(3), CLOCK)
    assert out.loss.item() != pytest.approx(without.item(), abs=1e-4)
    scores = torch.randn(6, 12)
    joint = sinkhorn(torch.cat([z @ m.prototypes.weight.T, scores]), 0.05)[-6:]
    torch.testing.assert_close(m._assign(0, torch.zeros(6, 16), scores), joint)


def test_queue_waits_for_its_epoch():
    m = make(queue=12, queue_from_epoch=3)
    m.step(batch(), CLOCK)
    m.after_update(CLOCK)
    assert int(m.queues[0].count) == 0


def test_each_global_crop_has_a_queue_of_its_own_and_both_survive_a_checkpoint():
    m = make(queue=12, queue_from_epoch=0)
    m.step(batch(), CLOCK)
    m.after_update(CLOCK)
    assert not torch.equal(m.queues[0].value, m.queues[1].value)
    fresh = make(queue=12, queue_from_epoch=0)
    fresh.load_state_dict(m.state_dict())
    for a, b in zip(fresh.queues, m.queues, strict=True):
        assert torch.equal(a.value, b.value) and int(a.count) == 6


def test_no_gradient_flows_through_the_assignment():
    m = make()
    z = torch.randn(6, 16)
    scores = (z @ m.prototypes.weight.T).requires_grad_()
    assert not m._assign(0, z, scores).requires_grad


def test_paper_recipe_has_the_papers_numbers():
    r = SwAV.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    o = r.optim
    assert (o.name, o.lr, o.lr_start, o.lr_end) == (
        "larc", 4.8, pytest.approx(0.3), pytest.approx(0.0048)
    )  # fmt: skip
    assert (r.options.prototypes, r.options.epsilon, r.options.local_crops) == (3000, 0.05, 6)
    few = SwAV.paper_recipe(RecipeContext(image_size=224, images=1_281_167, batch_size=256))
    assert (few.options.queue, few.options.freeze_prototypes) == (3840, 5005)

"""Distillation: its losses against naive loops, and the properties that must not be lost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nolabel.backbones import build
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.distill import Distill, similarities
from nolabel.nn.frozen import Frozen
from nolabel.types import Batch, Clock

MEAN, STD = (0.5,) * 3, (0.25,) * 3
CLOCK = Clock(0, 10, 2)


def make(teacher_size=32, student="resnet_nano", **changes):
    """A student of `student` under a random ViT of another width."""
    torch.manual_seed(0)
    net = build("vit_pico", image_size=teacher_size)
    teacher = Frozen(net, MEAN, STD, image_size=teacher_size)
    given = {"anchors": 12, "hidden": 16, **changes}
    return Distill(build(student, image_size=32), Distill.Options(**given), teacher=teacher)


def batch(seed, n=6):
    g = torch.Generator().manual_seed(seed)
    return Batch(views={"view": torch.randn(1, n, 3, 32, 32, generator=g)})


def unit(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1)


def naive(z, t, anchors, tau_s, tau_t):
    """SEED's equation 3 by loops: the image's own embedding stands before the anchors."""
    total = 0.0
    for zi, ti in zip(z, t, strict=True):
        places = [ti, *anchors]
        p = [math.exp(float(ti @ a) / tau_t) for a in places]
        q = [math.exp(float(zi @ a) / tau_s) for a in places]
        total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    return total / len(z)


@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.2, 0.05), (1.0, 1.0), (0.1, 0.3)])
def test_soft_loss_equals_the_naive_loops(tau_s, tau_t):
    z, t, anchors = unit(5, 8, 0), unit(5, 8, 1), unit(7, 8, 2)
    p, loss = similarities(z, t, anchors, tau_s, tau_t)
    assert loss.item() == pytest.approx(naive(z, t, anchors, tau_s, tau_t), rel=1e-9)
    assert p.shape == (5, 8) and torch.allclose(p.sum(1), torch.ones(5, dtype=p.dtype))


def test_a_student_that_equals_its_teacher_has_the_teachers_entropy_and_no_distance():
    t, anchors = unit(5, 8, 1), unit(7, 8, 2)
    p, loss = similarities(t, t, anchors, 0.1, 0.1)
    assert loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-9)
    _, other = similarities(unit(5, 8, 0), t, anchors, 0.1, 0.1)
    assert other > loss


def test_similarities_keep_full_precision_under_bf16():
    """At a temperature of 0.01 rounding to bf16 would move logits by whole units."""
    z, t, anchors = (v.float() for v in (unit(5, 64, 0), unit(5, 64, 1), unit(32, 64, 2)))
    exact = similarities(z, t, anchors, 0.2, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = similarities(z, t, anchors, 0.2, 0.01)
    assert torch.equal(exact[0], mixed[0]) and torch.equal(exact[1], mixed[1])


def test_anchors_are_the_teachers_unit_embeddings_and_move_after_the_update_alone():
    m = make()
    born, first = m.anchors.value.clone(), batch(0)
    m.step(first, CLOCK)
    m.step(batch(1), CLOCK)  # a second micro-batch of the same step
    assert torch.equal(m.anchors.value, born)
    m.after_update(CLOCK)
    expected = F.normalize(m.teacher.module(first.views["view"][0]), dim=-1)
    torch.testing.assert_close(m.anchors.value[:6], expected)
    torch.testing.assert_close(m.anchors.value.norm(dim=-1), torch.ones(12))
    assert "anchors.value" in m.state_dict()


def test_a_skipped_step_leaves_no_anchors():
    m = make()
    m.step(batch(0), Clock(0, 10, 2))  # the guard skipped the update
    m.step(batch(1), Clock(1, 10, 2))
    m.after_update(Clock(1, 10, 2))
    assert int(m.anchors.count) == 6


def test_teacher_sees_the_students_view_at_its_own_size():
    m = make(teacher_size=48)
    seen = []
    m.teacher.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = batch(0)
    m.step(x, CLOCK)
    assert seen[0].shape == (6, 3, 48, 48)
    # Shrunk again it is the same picture, up to what resampling smooths.
    again = F.interpolate(seen[0], size=(32, 32), mode="bicubic", antialias=True)
    view = x.views["view"][0]
    assert torch.corrcoef(torch.stack([again.flatten(), view.flatten()]))[0, 1] > 0.9


def test_teacher_stays_in_evaluation_mode_without_gradient():
    m = make(student="vit_pico").train()
    before = [p.clone() for p in m.teacher.module.parameters()]
    m.step(batch(0), CLOCK).loss.backward()
    assert not m.teacher.module.training
    for a, b in zip(before, m.teacher.module.parameters(), strict=True):
        assert b.grad is None and torch.equal(a, b)
    assert not any("teacher" in n for n, _ in m.named_parameters())
    assert all(p.grad is not None for p in m.parameters())


def test_weights_and_temperatures_that_teach_nothing_are_refused():
    with pytest.raises(UsageError, match="one must be above 0"):
        make(soft=0.0, features=0.0)
    with pytest.raises(UsageError, match="soft is -1.0.*at least 0"):
        make(soft=-1.0, features=2.0)
    with pytest.raises(UsageError, match="above 0"):
        make(teacher_temperature=0.0)


def test_paper_recipe_has_seeds_numbers():
    r = Distill.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    o = r.options
    assert (o.anchors, o.student_temperature, o.teacher_temperature) == (65536, 0.2, 0.01)
    assert (r.optim.name, r.optim.lr, r.optim.weight_decay) == ("sgd", 0.03, 1e-4)
    assert (r.batch_size, r.epochs, o.soft, o.features) == (256, 200, 1.0, 0.0)

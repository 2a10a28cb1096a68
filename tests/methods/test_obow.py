"""OBoW: naive computations, and the properties that must not be lost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nolabel.backbones import build
from nolabel.methods.base import RecipeContext
from nolabel.methods.obow import OBoW, bag_of_words, inner, one_location
from nolabel.nn.schedules import momentum
from nolabel.types import Batch, Clock, Tokens

CLOCK = Clock(3, 10, 2)


def make(backbone="resnet_nano", **changes):
    torch.manual_seed(0)
    base = {"words": 10, "local_crops": 1, "global_size": 32, "local_size": 16}
    return OBoW(build(backbone, image_size=32), OBoW.Options(**{**base, **changes}))


def batch(seed=0, b=4):
    g = torch.Generator().manual_seed(seed)
    sizes = {"teacher": (1, 32), "large": (2, 32), "small": (1, 16)}
    views = {n: torch.randn(v, b, 3, s, s, generator=g) for n, (v, s) in sizes.items()}
    return Batch(views=views)


def naive_bag(features, words, delta):
    """One image: assign every location, keep each word's largest share, make the sum 1."""
    best = [0.0] * len(words)
    nearest = []
    for t in features:
        d = [float((t - v).square().sum()) for v in words]
        nearest.append(min(d))
        e = [math.exp(-(x - min(d)) / delta) for x in d]
        best = [max(a, x / sum(e)) for a, x in zip(best, e, strict=True)]
    return [b / sum(best) for b in best], sum(nearest) / len(nearest)


def test_bags_equal_the_naive_loops():
    g = torch.Generator().manual_seed(0)
    t = torch.randn(3, 6, 5, generator=g).double()
    words = torch.randn(7, 5, generator=g).double()
    y, spread = bag_of_words(t, words, torch.tensor(1.7))
    expected = [naive_bag(image, words, 1.7) for image in t]
    torch.testing.assert_close(y, torch.tensor([b for b, _ in expected]).double())
    assert spread.item() == pytest.approx(sum(s for _, s in expected) / 3)


def test_step_equals_the_naive_computation_over_levels_and_crops():
    m, data = make().eval(), batch()
    m.spread.copy_(torch.tensor([2.0, 3.0]))
    means = []
    for i, level in enumerate(m.teacher.module.layers(data.views["teacher"][0], 2)):
        words = m.vocabulary[i].value
        weights = F.normalize(m.generators[i](F.normalize(words, dim=-1)), dim=-1)
        for name in ("large", "small"):
            total = []
            for crop in data.views[name]:
                log_p = (8.0 * m.student(crop) @ weights.T).log_softmax(-1)
                for image in range(4):
                    delta = float(m.spread[i]) / 15
                    bag, _ = naive_bag(level.patches[image], words, delta)
                    pairs = zip(bag, log_p[image], strict=True)
                    total.append(-sum(y * float(p) for y, p in pairs))
            means.append(sum(total) / len(total))
    ours = m.step(data, CLOCK).loss.item()
    assert ours == pytest.approx(sum(means) / 2, rel=1e-4)  # two levels


def test_outermost_locations_take_no_part_in_wide_maps():
    patches = torch.arange(2 * 36.0).reshape(2, 36, 1)
    level = Tokens(pooled=patches[:, 0], patches=patches, grid=(6, 6))
    assert inner(level).shape == (2, 1, 4, 4)
    assert inner(level)[0, 0, 0].tolist() == [7.0, 8.0, 9.0, 10.0]
    narrow = Tokens(pooled=patches[:, 0], patches=patches[:, :16], grid=(4, 4))
    assert inner(narrow).shape == (2, 1, 4, 4)


def test_a_new_word_is_the_mean_of_a_place_and_its_neighbours():
    maps = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    windows = F.unfold(maps, 3).unflatten(1, (3, 9)).mean(2)  # [50, 3, 4]
    new = one_location(maps)
    nearest = (windows - new[:, :, None]).abs().amax(1).amin(1)
    assert nearest.max() < 1e-5


def test_teacher_starts_equal_gets_no_gradient_and_moves_by_the_moving_average():
    m = make(teacher_momentum=0.9)
    for a, b in zip(m.student.parameters(), m.teacher.parameters(), strict=True):
        assert torch.equal(a, b)
    m.step(batch(), CLOCK).loss.backward()
    assert all(p.grad is None for p in m.teacher.parameters())
    before = [p.clone() for p in m.teacher.parameters()]
    with torch.no_grad():
        for p in m.student.parameters():
            p.add_(1.0)
    m.after_update(CLOCK)
    for a, b in zip(before, m.teacher.parameters(), strict=True):
        # The official code moves it before the next step's bags, with that step's alpha.
        torch.testing.assert_close(b, a + (1 - momentum(0.9, Clock(4, 10, 2))))


def test_every_image_brings_one_new_word_a_level_in_place_of_the_oldest():
    m = make(words=6)
    before = [q.value.clone() for q in m.vocabulary]
    m.step(batch(), CLOCK)
    assert all(torch.equal(a, q.value) for a, q in zip(before, m.vocabulary, strict=True))
    m.after_update(CLOCK)
    for a, q in zip(before, m.vocabulary, strict=True):
        assert (a != q.value).any(1).tolist() == [True] * 4 + [False] * 2


def test_sharpness_follows_the_mean_distance():
    m = make(spread_momentum=0.5)
    for step in range(4):
        before = m.spread.clone()
        torch.manual_seed(step)
        level = m.teacher.module.eval().layers(batch(step).views["teacher"][0], 2)
        now = torch.stack(
            [
                bag_of_words(x.patches, q.value, torch.tensor(1.0))[1]
                for x, q in zip(level, m.vocabulary, strict=True)
            ]
        )
        m.step(batch(step), Clock(step, 10, 2))
        m.after_update(Clock(step, 10, 2))
        # 10 words, 4 new ones a step: random words remain until the third step.
        expected = 0.5 * before + 0.5 * now if step == 3 else now
        torch.testing.assert_close(m.spread, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("view", ["large", "small"])
def test_every_crop_of_the_student_reaches_the_loss(view):
    m, data = make(), batch()
    x = data.views[view].requires_grad_()
    m.step(data, CLOCK).loss.backward()
    assert (x.grad.flatten(2).abs().sum(-1) > 0).all()


def test_words_and_sharpness_survive_a_checkpoint():
    m, fresh = make("vit_pico"), make("vit_pico")
    m.step(batch(), CLOCK)
    m.after_update(CLOCK)
    fresh.load_state_dict(m.state_dict())
    assert m.step(batch(), CLOCK).loss.item() == fresh.step(batch(), CLOCK).loss.item()


def test_paper_recipe_has_the_papers_numbers():
    r = OBoW.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    assert (r.options.words, r.options.teacher_momentum, r.options.local_crops) == (8192, 0.99, 5)
    assert (r.optim.name, r.optim.lr, r.optim.weight_decay) == ("sgd", 0.03, 1e-4)
    assert (r.optim.warmup_epochs, r.optim.lr_end) == (10, pytest.approx(3e-5))
    assert r.options.temperature == pytest.approx(1 / 15)
    teacher, large, small = OBoW.views(r.options, 224).views
    assert (teacher.scale, teacher.resize, teacher.size) == (None, 256, 224)
    assert (large.size, large.scale, small.size, small.count) == (160, (0.08, 0.6), 96, 5)

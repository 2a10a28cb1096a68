"""Random parameters depend on seed, epoch, sample, view and copy only."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from nolabel.views import View, ViewPlan, uniform
from nolabel.views.draw import Params, draw
from nolabel.views.fields import with_fields

GOLDEN = [  # recorded values of uniform(7, 3, [0, 12345, -1], 5, 2)
    [0.9648493498941558, 0.15228554289257634],
    [0.045326479973551326, 0.4893100904410771],
    [0.43085449351084093, 0.3638452027472482],
]
FIELDS = [f.name for f in dataclasses.fields(Params)]
FULL = View(
    name="global",
    count=2,
    size=32,
    scale=(0.2, 0.9),
    jitter=(0.4, 0.4, 0.2, 0.1),
    grey=0.2,
    blur=(1.0, 0.1),
    solarise=(0.0, 0.2),
)
PLAN = ViewPlan(
    views=(FULL, dataclasses.replace(FULL, name="local", count=3, blur=(0.5,), solarise=(0.3,)))
)


def drawn(keys, *, plan=PLAN, seed=0, epoch=0, h=60, w=80):
    keys = np.asarray(keys)
    return draw(plan, np.full(len(keys), h), np.full(len(keys), w), keys, seed, epoch)


def equal(a: Params, b: Params) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic of two samples, over the critical value at p = 0.001."""
    at = np.concatenate([a, b])
    cdf = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (a, b)]
    return np.abs(cdf[0] - cdf[1]).max() / (1.95 * np.sqrt(1 / len(a) + 1 / len(b)))


def test_uniform_numbers_are_uniform_and_unrelated():
    u = uniform(0, 0, np.arange(20_000), 0, 8)
    assert u.shape == (20_000, 8) and u.min() >= 0 and u.max() < 1
    assert ks(u.ravel(), (np.arange(u.size) + 0.5) / u.size) < 1
    columns = np.corrcoef(u.T) - np.eye(8)
    neighbours = np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]
    assert np.abs(columns).max() < 0.03 and abs(neighbours) < 0.03
    for other in (uniform(1, 0, np.arange(20_000), 0, 8), uniform(0, 1, np.arange(20_000), 0, 8)):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.02


def test_uniform_numbers_do_not_change_between_releases():
    got = uniform(7, 3, np.array([0, 12345, -1]), 5, 2)
    again = uniform(7 + 2**64, 3, np.array([0, 12345, 2**63 - 1 - 2**63]), 5, 2)
    assert np.array_equal(got, again)
    assert got == pytest.approx(np.array(GOLDEN), abs=1e-15)


def test_a_sample_has_the_same_parameters_in_any_batch_and_order():
    whole = drawn(np.arange(100))
    order = np.random.default_rng(0).permutation(100)
    shuffled, alone = drawn(order), drawn([42])
    for key, params in whole.items():
        assert equal(params[order], shuffled[key])
        assert equal(params[42:43], alone[key])


def test_another_seed_epoch_key_view_or_copy_gives_other_parameters():
    base = drawn(np.arange(50))
    for other in (
        drawn(np.arange(50), seed=1),
        drawn(np.arange(50), epoch=1),
        drawn(np.arange(50, 100)),
    ):
        for key, params in base.items():
            assert np.mean(params.factors == other[key].factors) < 0.01
    factors = [p.factors for p in base.values()]
    for i, a in enumerate(factors):
        for b in factors[:i]:
            assert np.mean(a == b) < 0.01


def test_adding_a_view_to_the_plan_does_not_change_the_others():
    less = drawn(np.arange(20), plan=ViewPlan(views=PLAN.views[:1]))
    more = drawn(np.arange(20))
    assert all(equal(params, more[key]) for key, params in less.items())


@pytest.mark.parametrize(("h", "w"), [(60, 80), (32, 32), (300, 100)])
def test_crops_are_distributed_as_torchvision_draws_them(h, w):
    n = 4000
    p = drawn(np.arange(n), h=h, w=w)["global", 0]
    torch.manual_seed(0)
    image = torch.empty(3, h, w)
    boxes = [RandomResizedCrop.get_params(image, [0.2, 0.9], [3 / 4, 4 / 3]) for _ in range(n)]
    top, left, height, width = np.array(boxes).T
    pairs = {
        "area": (p.height * p.width, height * width),
        "aspect": (p.width / p.height, width / height),
        "top": (p.top, top),
        "left": (p.left, left),
        "room": (p.top / (h - p.height + 1), top / (h - height + 1)),
    }
    for name, (ours, theirs) in pairs.items():
        assert ks(ours.astype(float), theirs.astype(float)) < 1, name
    assert (p.top + p.height <= h).all() and (p.left + p.width <= w).all()


def test_an_image_too_thin_for_any_crop_gets_the_centred_fallback():
    wide = drawn(np.arange(5), h=10, w=200)["global", 0]
    assert (wide.height == 10).all() and (wide.width == 13).all()
    assert (wide.left == (200 - 13) // 2).all()
    thin = drawn(np.arange(5), h=1000, w=1)["global", 0]
    assert (thin.height == 1).all() and (thin.width == 1).all()


def test_operations_have_their_probabilities():
    n = 20_000
    params = drawn(np.arange(n))
    wanted = {"flip": 0.5, "jitter": 0.8, "grey": 0.2}
    for (view, copy), p in params.items():
        v = next(x for x in PLAN.views if x.name == view)
        for field, value in {
            **wanted,
            "blur": v.blur_of(copy),
            "solarise": v.solarise_of(copy),
        }.items():
            error = 4 * np.sqrt(value * (1 - value) / n)
            assert abs(getattr(p, field).mean() - value) <= error, (view, copy, field)


def test_factors_orders_and_widths_cover_their_ranges():
    p = drawn(np.arange(20_000))["local", 0]
    low, high = [0.6, 0.6, 0.8, -0.1], [1.4, 1.4, 1.2, 0.1]
    for k in range(4):
        grid = np.linspace(low[k], high[k], 20_000)
        assert ks(p.factors[:, k], grid) < 1
    assert ks(p.sigma, np.linspace(0.1, 2.0, 20_000)) < 1
    orders, counts = np.unique(p.order, axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 0.85 * 20_000 / 24
    assert (np.sort(p.order, axis=1) == np.arange(4)).all()


def test_without_flips_nothing_is_reversed_and_all_other_draws_stay():
    keys = np.arange(200)
    before, after = drawn(keys), drawn(keys, plan=with_fields(PLAN, flip=0.0))
    for key, params in before.items():
        assert 0.4 < params.flip.mean() < 0.6 and not after[key].flip.any()
        assert equal(params, dataclasses.replace(after[key], flip=params.flip))


def test_turns_are_drawn_as_often_as_asked_and_leave_all_other_draws():
    keys = np.arange(4000)
    before = drawn(keys)
    after = drawn(keys, plan=with_fields(PLAN, vertical_flip=0.3, quarter_turns=0.6))
    for key, params in before.items():
        assert not params.vertical_flip.any() and not params.turns.any()
        turned = after[key]
        assert turned.vertical_flip.mean() == pytest.approx(0.3, abs=0.03)
        assert np.bincount(turned.turns) / 4000 == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.03)
        back = {"vertical_flip": params.vertical_flip, "turns": params.turns}
        assert equal(params, dataclasses.replace(turned, **back))

"""Signals without labels."""

from __future__ import annotations

import math

import pytest
import torch

from nolabel.engine.monitor.signals import effective_rank, feature_std, signals
from nolabel.nn.contrastive import pair_signals
from nolabel.nn.losses import target_signals


def test_spread_does_not_depend_on_the_features_lengths():
    z = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(500, 1) * 10 + 0.1
    assert feature_std(z * lengths) == pytest.approx(feature_std(z), rel=1e-5)


def test_spread_falls_as_features_gather_around_one_direction():
    z = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    spreads = [feature_std(z + shift) for shift in (0.0, 1.0, 5.0, 100.0)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 0.95
    assert spreads[-1] < 0.02


def test_effective_rank_is_the_number_of_equal_singular_values():
    z = torch.zeros(20, 8)
    z[:5, :5] = 3.0 * torch.eye(5)
    assert effective_rank(z) == pytest.approx(5.0, rel=1e-5)
    s = torch.tensor([3.0, 1.0])  # p = 3/4, 1/4
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(s)) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_collapse_to_one_point_shows_in_both_signals():
    found = signals(torch.ones(32, 8))
    assert found["feature_std"] == pytest.approx(0.0, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(1.0, abs=1e-3)


def test_collapse_to_zero_and_a_single_image_give_numbers():
    for z in (torch.zeros(8, 4), torch.randn(1, 4)):
        assert all(math.isfinite(v) for v in signals(z).values())


def test_features_that_are_not_finite_give_nan_and_no_error():
    z = torch.randn(8, 4)
    z[3, 2] = torch.inf
    assert all(math.isnan(v) for v in signals(z).values())


def test_signals_of_half_precision_features_with_gradient_are_plain_numbers():
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    half = signals(z.bfloat16().requires_grad_())
    assert half == pytest.approx(signals(z), rel=0.02)
    assert all(type(v) is float for v in half.values())


def test_signals_of_pairs_are_the_mean_cosines_of_the_loops():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 7, generator=g)
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).tolist()
    found = pair_signals(a, b)
    own = [cosine[i][i] for i in range(5)]
    others = [cosine[i][j] for i in range(5) for j in range(5) if i != j]
    assert float(found["agreement"]) == pytest.approx(sum(own) / 5, abs=1e-6)
    assert float(found["agreement_others"]) == pytest.approx(sum(others) / 20, abs=1e-6)


def test_targets_tell_nothing_in_both_kinds_of_collapse_and_most_when_each_image_has_its_own():
    one = torch.nn.functional.one_hot(torch.zeros(6, dtype=torch.long), 8).float()
    alike, own = torch.full((6, 8), 1 / 8), torch.eye(6, 8)
    found = [target_signals(p) for p in (one, alike, own)]
    information = [float(f["target_information"]) for f in found]
    assert information == pytest.approx([0.0, 0.0, math.log(6)], abs=1e-6)
    assert [float(f["target_entropy"]) for f in found] == pytest.approx([0, math.log(8), 0])
    assert [int(f["prototypes_used"]) for f in found] == [1, 1, 6]


def test_feature_std_is_one_for_isotropic_features_and_zero_for_collapsed_ones():
    g = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(4000, 32, generator=g)) == pytest.approx(1.0, abs=0.02)
    assert feature_std(torch.ones(100, 32)) == pytest.approx(0.0, abs=1e-6)


def test_effective_rank_counts_dimensions():
    g = torch.Generator().manual_seed(0)
    low = torch.randn(500, 4, generator=g) @ torch.randn(4, 64, generator=g)
    assert effective_rank(low) < 4.01
    assert effective_rank(torch.randn(2000, 16, generator=g)) > 15.5

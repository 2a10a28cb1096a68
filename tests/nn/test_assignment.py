"""Sinkhorn: official numbers, its marginals, and what the official code cannot do."""

from __future__ import annotations

import pytest
import torch

from nolabel.nn.assignment import sinkhorn, sinkhorn_shift


def naive(logits, temperature, iterations):
    """The official order of operations, in float64."""
    q = (logits.double() / temperature).exp().T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * k
        q /= q.sum(0, keepdim=True) * b
    return (q * b).T


def scores(n=24, k=8, size=1.0, seed=0):
    return size * torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_it_equals_the_naive_computation(iterations):
    x = scores()
    torch.testing.assert_close(sinkhorn(x, 0.3, iterations), naive(x, 0.3, iterations))


def test_every_sample_is_shared_out_and_every_prototype_gets_its_share():
    q = sinkhorn(scores(), 0.5, 50)
    torch.testing.assert_close(q.sum(1), torch.ones(24).double())
    torch.testing.assert_close(q.sum(0), torch.full((8,), 3.0).double(), rtol=1e-4, atol=1e-4)


def test_scores_that_overflow_the_exponential_are_no_trouble():
    x = scores(size=50.0).float()
    assert torch.isinf((x / 0.04).exp()).any()
    q = sinkhorn(x, 0.04)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q, sinkhorn(x.double(), 0.04).float(), rtol=1e-4, atol=1e-6)


def test_all_samples_alike_are_still_spread_evenly():
    q = sinkhorn(torch.ones(6, 4) * torch.tensor([9.0, 0.0, 0.0, 0.0]), 0.05)
    torch.testing.assert_close(q, torch.full((6, 4), 0.25))


def test_rows_in_pieces_give_the_same_scales():
    x = scores() / 0.3
    whole, pieces = sinkhorn_shift([x]), sinkhorn_shift(x.split(7))
    torch.testing.assert_close(whole, pieces)

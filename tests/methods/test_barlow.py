"""Barlow Twins: official numbers, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.methods.barlow import BarlowTwins, redundancy_loss
from nolabel.methods.base import RecipeContext
from nolabel.nn.contrastive import cross_correlation
from nolabel.types import Batch, Clock

ORACLE = Path(__file__).parents[1] / "oracles" / "barlow.safetensors"
CLOCK = Clock(0, 10, 2)


def test_loss_and_gradients_match_the_official_numbers():
    o = load_file(ORACLE)
    z1, z2 = o["z1"].requires_grad_(), o["z2"].requires_grad_()
    loss = redundancy_loss(cross_correlation(z1, z2), 0.0051)
    torch.testing.assert_close(loss, o["loss"], rtol=1e-5, atol=1e-6)
    g1, g2 = torch.autograd.grad(loss, (z1, z2))
    torch.testing.assert_close(g1, o["grad1"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(g2, o["grad2"], rtol=1e-4, atol=1e-6)


def test_loss_equals_the_naive_double_loop():
    g = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 9, 4, generator=g).double()
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
    total = 0.0
    for i in range(4):
        for j in range(4):
            c = sum(float(a[n, i] * b[n, j]) for n in range(9)) / 9
            total += (1 - c) ** 2 if i == j else 0.02 * c**2
    ours = redundancy_loss(cross_correlation(z1, z2), 0.02)
    assert ours.item() == pytest.approx(total, rel=1e-9)


def test_identical_independent_embeddings_cost_nothing():
    z = torch.linalg.qr(torch.randn(64, 8).double() - 0)[0]
    z = torch.linalg.qr(z - z.mean(0))[0]  # uncorrelated columns of mean 0
    assert redundancy_loss(cross_correlation(z * 50, z * 50), 1.0).item() < 1e-5


def test_a_collapsed_embedding_pays_for_every_dimension():
    z = torch.ones(6, 5)
    assert redundancy_loss(cross_correlation(z, z), 0.0051).item() == pytest.approx(5.0)


def test_correlations_of_one_view_with_itself_are_one():
    z = torch.randn(32, 6)
    c = cross_correlation(z, z)
    torch.testing.assert_close(torch.diagonal(c), torch.ones(6), rtol=1e-4, atol=1e-4)
    assert c.abs().max() < 1 + 1e-5


def test_gradient_reaches_backbone_and_projector():
    torch.manual_seed(0)
    options = BarlowTwins.Options(hidden=32, projection=16)
    m = BarlowTwins(build("resnet_nano", image_size=32), options)
    m.step(Batch(views={"view": torch.randn(2, 4, 3, 32, 32)}), CLOCK).loss.backward()
    assert [n for n, p in m.named_parameters() if p.grad is None] == []


def test_paper_recipe_has_the_papers_numbers():
    r = BarlowTwins.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    assert r.batch_size == 2048
    assert (r.optim.lr, r.optim.lr_plain) == (pytest.approx(1.6), pytest.approx(0.0384))
    assert r.optim.lr_end == pytest.approx(0.0016)
    assert (r.options.weight, r.options.projection) == (0.0051, 8192)

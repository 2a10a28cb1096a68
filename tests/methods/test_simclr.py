"""SimCLR: the loss against a naive loop, and the properties that must not be lost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from nolabel.backbones import build
from nolabel.methods.base import RecipeContext
from nolabel.methods.simclr import SimCLR
from nolabel.nn.contrastive import nt_xent
from nolabel.types import Batch, Clock

CLOCK = Clock(0, 10, 2)


def naive(a, b, temperature):
    """Equation 1 in the words of the paper: 2N anchors, one positive, 2N - 2 negatives."""
    z = torch.cat([a, b])
    n = len(a)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        top = math.exp(float(z[i] @ z[j]) / temperature)
        bottom = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i)
        total += -math.log(top / bottom)
    return total / (2 * n)


def unit(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_loss_equals_the_naive_double_loop(temperature):
    a, b = unit(7, 16, 0), unit(7, 16, 1)
    ours = nt_xent(a, b, temperature)
    assert ours.item() == pytest.approx(naive(a, b, temperature), rel=1e-5)


def test_two_processes_together_have_the_loss_of_the_whole_batch(as_process):
    a, b = unit(8, 16, 0), unit(8, 16, 1)
    whole, halves = nt_xent(a, b, 0.2), []
    for rank, s in enumerate((slice(0, 4), slice(4, 8))):
        with as_process(rank, (a[s], a), (b[s], b)):
            halves.append(nt_xent(a[s], b[s], 0.2))
    assert torch.stack(halves).mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_the_two_views_are_interchangeable():
    a, b = unit(5, 8, 0), unit(5, 8, 1)
    assert nt_xent(a, b, 0.1).item() == pytest.approx(nt_xent(b, a, 0.1).item())


def test_perfect_agreement_costs_less_than_disagreement():
    a, b = unit(5, 8, 0), unit(5, 8, 1)
    assert nt_xent(a, a, 0.1) < nt_xent(a, b, 0.1)


@pytest.mark.parametrize("name", ["vit_nano", "swin_nano", "resnet_nano"])
def test_gradient_reaches_backbone_and_head(name):
    torch.manual_seed(0)
    m = SimCLR(build(name, image_size=32), SimCLR.Options(hidden=32, projection=16))
    m.step(Batch(views={"view": torch.randn(2, 4, 3, 32, 32)}), CLOCK).loss.backward()
    without = [n for n, p in m.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_last_batch_norm_of_the_head_has_no_bias():
    m = SimCLR(build("resnet_nano", image_size=32), SimCLR.Options())
    last = m.head.layers[-1]
    assert not last.bias.requires_grad
    assert torch.equal(last.bias, torch.zeros_like(last.bias))


def test_paper_recipe_has_the_papers_numbers():
    r = SimCLR.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    assert (r.optim.name, r.optim.lr, r.optim.weight_decay) == ("lars", pytest.approx(4.8), 1e-6)
    (view,) = SimCLR.views(r.options, 224).views
    assert view.jitter == (0.8, 0.8, 0.8, 0.2)
    assert (view.count, view.scale, view.grey, view.blur) == (2, (0.08, 1.0), 0.2, (0.5,))

"""dVAE: the relaxation, the KL and the logit-Laplace density against naive float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nolabel.backbones import build
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.dvae import DVAE, EPS, kl_to_uniform
from nolabel.nn.keyed_random import gumbel
from nolabel.nn.patches import patchify
from nolabel.nn.pixels import logit_laplace_nll
from nolabel.types import Batch, Clock

CLOCK = Clock(0, 10, 2)


def make(backbone="vit_pico", **changes):
    torch.manual_seed(0)
    base = {"codes": 16, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    return DVAE(build(backbone, image_size=32), DVAE.Options(**{**base, **changes})).train()


def pictures(n=4, seed=0):
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(views={"image": x[None]})


@pytest.mark.parametrize(("mu", "b"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 0.1), (0.4, 2.5)])
def test_the_logit_laplace_is_a_density_on_0_to_1(mu, b):
    """Integrated over equal steps of the logit, where the integrand has no poles at the ends."""
    u = torch.linspace(mu - 60 * b, mu + 60 * b, 400_001, dtype=torch.float64)
    x = u.sigmoid()
    inside = (x > 0) & (x < 1 - 1e-12)
    x, u = x[inside], u[inside]
    nll = logit_laplace_nll(x, torch.full_like(x, mu), torch.full_like(x, math.log(b)))
    mass = torch.trapezoid((-nll).exp(), x).item()
    assert mass == pytest.approx(1.0, abs=2e-3)


def test_the_logit_laplace_is_the_formula_of_appendix_a3():
    x, mu, b = 0.3, 0.7, 0.2
    density = math.exp(-abs(math.log(x / (1 - x)) - mu) / b) / (2 * b * x * (1 - x))
    ours = logit_laplace_nll(*(torch.tensor(v).double() for v in (x, mu, math.log(b))))
    assert ours.item() == pytest.approx(-math.log(density), rel=1e-6)


def test_kl_is_the_sum_over_the_vocabulary():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)) * 3
    total = 0.0
    for row in logits.double().flatten(0, 1).tolist():
        top = [math.exp(v) for v in row]
        total += sum(t / sum(top) * math.log(t / sum(top) * 7) for t in top)
    assert kl_to_uniform(logits).item() == pytest.approx(total / 6, rel=1e-5)
    assert kl_to_uniform(torch.zeros(2, 7)).item() == pytest.approx(0.0, abs=1e-6)
    certain = torch.tensor([[200.0, 0, 0, 0]])
    assert kl_to_uniform(certain).item() == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("likelihood", ["logit-laplace", "mse"])
def test_loss_with_given_noise_is_the_loop_over_tokens_and_pixels(likelihood, monkeypatch):
    """The relaxed draw, the likelihood of each number and beta / (p^2 C), in float64."""
    m = make(likelihood=likelihood, kl_weight=3.0, warm=0.0, anneal=0.5, temperature=0.25)
    m.mean, m.std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    batch, clock = pictures(2), Clock(2, 10, 2)
    x = batch.views["image"][0]
    noise = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("nolabel.methods.dvae.gumbel", lambda _: noise)
    loss = m.step(batch, clock).loss
    t = 0.25 + 0.5 * 0.75 * (1 + math.cos(math.pi * 2 / 5))
    with torch.no_grad():
        logits = m.to_logits(m.backbone.tokens(x).patches)
        soft = np.zeros((2, 64, 16))
        for n in range(2):
            for p in range(64):
                up = [math.exp((logits[n, p, k] + noise[n, p, k]) / t) for k in range(16)]
                soft[n, p] = [u / sum(up) for u in up]
        mixed = torch.from_numpy(np.einsum("npk,kd->npd", soft, m.vectors.numpy().astype(float)))
        pred = patchify(m.decoder(mixed.float()), 4).double()
        target = patchify(x, 4).double()
        total, count = 0.0, 0
        half = pred.view(2, 64, 16, -1)  # pixel by pixel, channels last
        goal = target.view(2, 64, 16, 3)
        for c in range(3):
            if likelihood == "mse":
                total += (half[..., c] - goal[..., c]).square().sum().item()
            else:
                pixel = (goal[..., c] * m.std[c] + m.mean[c]).clamp(0, 1)
                y = (1 - 2 * EPS) * pixel + EPS
                b = half[..., c + 3].exp() + 0.01
                u = (y / (1 - y)).log()
                total += ((u - half[..., c]).abs() / b + (2 * b * y * (1 - y)).log()).sum().item()
            count += goal[..., c].numel()
        expected = total / count + 3.0 / 48 * kl_to_uniform(logits).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gumbel_noise_has_the_mean_and_variance_of_the_distribution():
    torch.manual_seed(0)
    g = gumbel(torch.empty(4, 50_000, dtype=torch.float64))
    assert g.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert g.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_draws_follow_the_probabilities_and_sharpen_with_the_temperature():
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(50_000, 3)
    noisy = logits + gumbel(logits)
    share = noisy.argmax(-1).bincount() / 50_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.01)
    tops = [(noisy / t).softmax(-1).amax(-1).mean().item() for t in (1.0, 0.25, 0.0625)]
    assert tops == sorted(tops) and tops[-1] > 0.95


def test_temperature_and_kl_weight_follow_half_a_cosine_and_stay():
    m = make(anneal=0.5, warm=0.2)
    clocks = [Clock(s, 100, 10) for s in (0, 25, 50, 99)]
    t = [m.temperature(c) for c in clocks]
    assert t == pytest.approx([1.0, (1 + 1 / 16) / 2, 1 / 16, 1 / 16])
    beta = [m.kl_weight(Clock(s, 100, 10)) for s in (0, 10, 20, 99)]
    assert beta == pytest.approx([0.0, 3.3, 6.6, 6.6])


def test_the_default_scale_of_the_kl_is_the_papers_beta_over_192():
    m = DVAE(build("vit_pico", image_size=32, patch_size=8), DVAE.Options(codes=4))
    assert m.numbers == 192


@pytest.mark.parametrize("backbone", ["vit_pico", "resnet_nano"])
def test_tokens_lie_row_by_row_below_the_vocabulary(backbone):
    m = make(backbone).eval()
    x = pictures(3).views["image"][0]
    ids = m.tokens(x)
    side = 32 // m.backbone.patch_size
    assert ids.shape == (3, side * side) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < m.vocabulary == 16
    t = m.backbone.tokens(x)
    chosen = m.to_logits(t.patches[:, 1 * t.grid[1] + 2]).argmax(-1)
    assert torch.equal(ids.view(3, side, side)[:, 1, 2], chosen)


def test_reconstruction_undoes_the_map_of_the_pixels():
    """A decoder that is certain of mu = logit((1 - 2 eps) x + eps) gives x back."""
    m = make()
    m.mean, m.std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    mean, std = torch.tensor(m.mean).view(3, 1, 1), torch.tensor(m.std).view(3, 1, 1)
    pixels = torch.rand(2, 3, 8, 8)
    mu = ((1 - 2 * EPS) * pixels + EPS).logit()
    x = (pixels - mean) / std
    pred = torch.cat([mu, torch.full_like(mu, -6.0)], 1)
    torch.testing.assert_close(m.pixels(pred), x, rtol=1e-4, atol=1e-5)
    worse = torch.cat([mu + 0.3, torch.full_like(mu, -6.0)], 1)
    assert m.reconstruction_loss(pred, x) < m.reconstruction_loss(worse, x)


def test_black_and_white_pixels_have_a_finite_likelihood():
    m = make()
    x = torch.full((1, 2, 3, 32, 32), -9.0)
    x[0, 1] = 9.0
    out = m.step(Batch(views={"image": x}), CLOCK)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)


def test_the_runs_own_statistics_reach_the_method(tiny_run):
    from nolabel.engine.build import load_method

    run = tiny_run("dvae", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    m, _ = load_method(run.folder)
    assert (m.mean, m.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": 1}, "at least 2"),
        ({"temperature": 0.0}, "above 0"),
        ({"anneal": 1.5}, "between 0 and 1"),
        ({"likelihood": "normal"}, "logit-laplace"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        make(**change)


def test_paper_recipe_has_the_papers_numbers():
    r = DVAE.paper_recipe(RecipeContext(image_size=256, images=250_000_000))
    o = r.options
    assert (o.codes, o.temperature, o.kl_weight) == (8192, 1 / 16, 6.6)
    updates = r.epochs * 250_000_000 / r.batch_size
    assert (o.anneal * updates, o.warm * updates) == pytest.approx((150_000, 5_000), rel=0.05)
    assert (r.optim.lr, r.optim.lr_end, r.optim.weight_decay) == (1e-4, 1.25e-6, 1e-4)

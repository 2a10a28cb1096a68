"""Under bfloat16 autocast only the networks are inexact: losses, distances, assignments, queues and
statistics equal those in fp32, in value and gradient, also where all images are nearly the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nolabel import methods
from nolabel.device import in_fp32
from nolabel.methods.ablations.dino import squared_distance_views
from nolabel.methods.byol import regression_loss
from nolabel.methods.distill import similarities
from nolabel.methods.mocov2 import info_nce
from nolabel.methods.obow import bag_of_words
from nolabel.methods.triplet import triplet_loss
from nolabel.nn.assignment import prototype_scores, sinkhorn, spherical_kmeans
from nolabel.nn.contrastive import (
    batch_info_nce,
    clip_loss,
    cross_correlation,
    nt_xent,
    pair_signals,
    siglip_loss,
    view_distances,
)
from nolabel.nn.heads import PrototypeHead, WeightNormLinear
from nolabel.nn.koleo import koleo
from nolabel.nn.losses import cross_entropy_views
from nolabel.testing import IMAGES, TINY, build_small, random_batch
from nolabel.types import Batch, Clock, Step

ROWS, WIDTH = 24, 32


def near_equal(seed: int, rows: int = ROWS) -> Tensor:
    """Unit vectors whose cosines with each other are 0.9996."""
    g = torch.Generator().manual_seed(seed)
    centre = F.normalize(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(9)), dim=-1)
    z = centre + 0.02 * F.normalize(torch.randn(rows, WIDTH, generator=g), dim=-1)
    return F.normalize(z, dim=-1)


def triplet(mining: str):
    return lambda a, b: triplet_loss(*view_distances(torch.stack([a, b])), 0.2, mining)


QUEUE = near_equal(5, 40)
SPREAD = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(6))
ONE = torch.tensor(1.0)
LOSSES = {
    "koleo": lambda a, b: koleo(a),
    "triplet, all": triplet("all"),
    "triplet, semi-hard": triplet("semi-hard"),
    "triplet, hard": triplet("hard"),
    "nt_xent": lambda a, b: nt_xent(a, b, 0.1),
    "batch_info_nce": lambda a, b: batch_info_nce(a, b, 0.2),
    "info_nce": lambda a, b: info_nce(a, b, QUEUE, 0.2),
    "clip": lambda a, b: clip_loss(a, b, 100 * ONE),
    "clip, chunks": lambda a, b: clip_loss(a, b, 100 * ONE, chunk=7),
    "siglip": lambda a, b: siglip_loss(a, b, 10 * ONE, -10 * ONE),
    "cross_correlation": lambda a, b: (cross_correlation(a, b) - 1).square().sum(),
    "byol": regression_loss,
    "distill": lambda a, b: similarities(a, b, QUEUE, 0.2, 0.01)[1],
    "distill, targets": lambda a, b: similarities(b, a, QUEUE, 0.2, 0.01)[0].square().sum(),
    "squared_distance_views": lambda a, b: squared_distance_views(b[None], torch.stack([a, a])),
    "cross_entropy_views": lambda a, b: cross_entropy_views(
        (prototype_scores(b[None], SPREAD) / 0.04).softmax(-1),
        prototype_scores(torch.stack([a, a]), SPREAD) / 0.1,
    ),
    "bag_of_words": lambda a, b: bag_of_words(a[None], QUEUE, 1e-3 * ONE)[0].square().sum(),
}


def value_and_gradient(loss, cast: bool) -> tuple[Tensor, Tensor]:
    a, b = near_equal(1).requires_grad_(), near_equal(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        value = loss(a, b)
    (gradient,) = torch.autograd.grad(value, a)
    return value.detach(), gradient.flatten()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_near_equal_vectors_is_the_same_under_autocast(name):
    exact, gradient = value_and_gradient(LOSSES[name], cast=False)
    value, other = value_and_gradient(LOSSES[name], cast=True)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-6)
    assert F.cosine_similarity(gradient, other, dim=0) > 0.9999
    torch.testing.assert_close(other.norm(), gradient.norm(), rtol=1e-4, atol=1e-7)


STATISTICS = {
    "pair_signals": lambda: pair_signals(near_equal(1), near_equal(2))["agreement_others"],
    "sinkhorn": lambda: sinkhorn(prototype_scores(near_equal(1), SPREAD), 0.05),
    "sinkhorn of bf16": lambda: sinkhorn((SPREAD / 8).bfloat16(), 0.05),
    "k-means": lambda: spherical_kmeans(near_equal(1), near_equal(1)[:4], 3)[0],
}


@pytest.mark.parametrize("name", STATISTICS)
def test_assignments_and_statistics_are_the_same_under_autocast(name):
    exact = STATISTICS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        value = STATISTICS[name]()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-7)


def test_bottlenecks_are_scaled_to_unit_length_in_fp32():
    with torch.autocast("cpu", torch.bfloat16):
        z = PrototypeHead(WIDTH, 8, hidden=16, bottleneck=16).bottleneck(SPREAD)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(40), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_prototypes_tell_near_equal_vectors_apart_in_bf16(spread):
    """Prototypes around rows of cosine 0.9996 and 0.99, teacher's targets at a temperature of 0.04:
    in bf16 throughout the cosine of the weights' gradients was 0.14 and 0.98."""
    centre = F.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(9)), dim=-1)

    def around(seed, rows, spread):
        g = torch.Generator().manual_seed(seed)
        noise = F.normalize(torch.randn(rows, WIDTH, generator=g), dim=-1)
        return F.normalize(centre + spread * noise, dim=-1)

    layer = WeightNormLinear(WIDTH, 512, train_norm=False)
    layer.weight_v.data.copy_(around(3, 512, 3 * spread))

    def gradients(cast):
        z = around(1, ROWS, spread).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            t = layer(around(2, ROWS, spread)).detach()
            targets = ((t - t.mean(0)) / 0.04).softmax(-1)
            loss = cross_entropy_views(targets[None], torch.stack([layer(z)] * 2) / 0.1)
        return torch.autograd.grad(loss, [z, layer.weight_v])

    for exact, other in zip(gradients(False), gradients(True), strict=True):
        assert F.cosine_similarity(exact.flatten(), other.flatten(), dim=0) > 0.99


def test_prototypes_of_no_rows_give_no_gradient_but_zeros():
    layer = WeightNormLinear(WIDTH, 8, train_norm=False)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.zeros(0, WIDTH)).sum().backward()
    assert not layer.weight_v.grad.any()


def test_ibots_mean_logits_of_all_patches_are_computed_in_fp32():
    method = build_small(
        methods.load("ibot"), methods.load("ibot").Options(**TINY["ibot"]), "vit_pico"
    )
    seen = []
    method.patch_centre.observe = lambda mean, step: seen.append(mean.dtype)
    with torch.autocast("cpu", torch.bfloat16):
        method.step(random_batch(type(method).views(method.options, 32), 0), Clock(0, 8, 1))
    assert seen == [torch.float32]


def test_the_decorator_leaves_wider_types_and_whole_numbers_alone():
    @in_fp32
    def types(a, b, *, c):
        return a.dtype, b.dtype, c.dtype, (a @ a).dtype

    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = types(x.bfloat16(), x.double(), c=x.long())
    assert found == (torch.float32, torch.float64, torch.int64, torch.float32)


def step_of(name: str, cast: bool, alike: bool) -> tuple[Step, Tensor]:
    """A step on images that are `alike` or not, and the gradient of all parameters."""
    kind = methods.load(name)
    memory = {"images": IMAGES} if name == "deepclusterv2" else {}
    options = kind.Options(**TINY[name], **memory)
    method = build_small(kind, options, "vit_pico")
    if name == "deepclusterv2":
        method.labels.copy_(torch.arange(IMAGES) % 3)
        method.prototypes.copy_(F.normalize(torch.randn_like(method.prototypes), dim=-1))
    batch = random_batch(kind.views(options, 32), 0)
    views = batch.views
    if alike:
        views = {n: v[:1, :1] + 0.1 * (v - v[:1, :1]) for n, v in views.items()}
    batch = Batch(views=views, keys=torch.arange(IMAGES), text=batch.text)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        out = method.step(batch, Clock(6, 8, 1))
    out.loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in method.parameters()]
    return dataclasses.replace(out, loss=out.loss.detach()), torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("name", TINY)
def test_outside_the_networks_a_step_is_the_same_under_autocast(name, monkeypatch):
    """Every module computes in fp32 here, so that a difference is the page's or a function's."""
    call = nn.Module.__call__

    def exactly(self, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return call(self, *args, **kwargs)

    exact, gradient = step_of(name, cast=False, alike=True)
    monkeypatch.setattr(nn.Module, "__call__", exactly)
    out, other = step_of(name, cast=True, alike=True)
    torch.testing.assert_close(out.loss, exact.loss, rtol=1e-4, atol=1e-5)
    assert F.cosine_similarity(gradient, other, dim=0) > 0.999
    for key, value in exact.logs.items():
        assert float(out.logs[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("name", TINY)
def test_a_step_with_networks_in_bf16_goes_the_same_way(name):
    exact, gradient = step_of(name, cast=False, alike=False)
    out, other = step_of(name, cast=True, alike=False)
    torch.testing.assert_close(out.loss, exact.loss, rtol=0.05, atol=0.02)
    assert F.cosine_similarity(gradient, other, dim=0) > 0.9

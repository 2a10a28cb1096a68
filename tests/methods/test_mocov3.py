"""MoCo v3: official numbers, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.backbones.init import sincos_positions
from nolabel.methods.base import RecipeContext
from nolabel.methods.mocov3 import MoCoV3, ctr
from nolabel.nn.schedules import momentum
from nolabel.types import Batch, Clock

ORACLE = Path(__file__).parents[1] / "oracles" / "mocov3_loss.safetensors"
CLOCK = Clock(3, 10, 2)


def make(backbone="vit_pico", **changes):
    torch.manual_seed(0)
    net = build(backbone, image_size=32)
    MoCoV3.init(net)
    return MoCoV3(net, MoCoV3.Options(**{"hidden": 32, "projection": 16, **changes}))


def batch(seed=0, b=6):
    g = torch.Generator().manual_seed(seed)
    return Batch(views={"view": torch.randn(2, b, 3, 32, 32, generator=g)})


def test_loss_and_gradient_match_the_official_numbers():
    """The oracle's vectors are as they come from the networks: the loss normalises them."""
    o = load_file(ORACLE)
    q = o["q"].requires_grad_()
    k = F.normalize(o["k"], dim=-1)
    loss = ctr(F.normalize(q, dim=-1), k, 0.2)
    (grad,) = torch.autograd.grad(loss, q)
    torch.testing.assert_close(loss, o["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, o["grad"], rtol=1e-4, atol=1e-7)


def test_loss_equals_the_naive_double_loop_with_its_factor():
    g = torch.Generator().manual_seed(0)
    q, k = F.normalize(torch.randn(2, 5, 8, generator=g).double(), dim=-1)
    total = 0.0
    for i in range(5):
        e = [torch.exp(q[i] @ k[j] / 0.5).item() for j in range(5)]
        total -= torch.log(torch.tensor(e[i] / sum(e), dtype=torch.float64)).item()
    assert ctr(q, k, 0.5).item() == pytest.approx(2 * 0.5 * total / 5, rel=1e-9)


def test_step_contrasts_both_directions():
    m, data = make(), batch()
    x1, x2 = data.views["view"]
    q1, q2 = (F.normalize(m.predictor(m.base(x)), dim=-1) for x in (x1, x2))
    k1, k2 = (F.normalize(m.momentum_encoder(x), dim=-1) for x in (x1, x2))
    expected = ctr(q1, k2, 0.2) + ctr(q2, k1, 0.2)
    torch.testing.assert_close(m.step(data, CLOCK).loss, expected, rtol=1e-4, atol=1e-6)


def test_a_process_finds_its_own_keys_among_those_of_all(as_process):
    g = torch.Generator().manual_seed(0)
    q, k = F.normalize(torch.randn(2, 6, 8, generator=g).double(), dim=-1)
    whole, halves = ctr(q, k, 0.2), []
    for rank, s in enumerate((slice(0, 3), slice(3, 6))):
        with as_process(rank, (k[s], k)):
            halves.append(ctr(q[s], k[s], 0.2))
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_patch_projection_and_positions_never_move():
    m = make()
    frozen = {n for n, p in m.base.named_parameters() if not p.requires_grad}
    patch = {f"0.net.patch_embed.proj.{n}" for n in ("weight", "bias")}
    assert frozen == {"0.net.pos_embed"} | patch
    assert make(freeze_patch=False).base[0].net.patch_embed.proj.weight.requires_grad


def test_positions_are_the_transpose_of_maes():
    net = make().base[0].net
    mae = sincos_positions(64, 8)[:, 1:].unflatten(1, (8, 8))
    torch.testing.assert_close(net.pos_embed[:, 1:].unflatten(1, (8, 8)), mae.transpose(1, 2))
    assert net.pos_embed[:, 0].abs().max() == 0


def test_momentum_encoder_starts_equal_gets_no_gradient_and_moves_by_the_moving_average():
    m = make(key_momentum=0.9)
    for a, b in zip(m.base.parameters(), m.momentum_encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    m.step(batch(), CLOCK).loss.backward()
    assert all(p.grad is None for p in m.momentum_encoder.parameters())
    before = [p.clone() for p in m.momentum_encoder.parameters()]
    with torch.no_grad():
        for p in m.base.parameters():
            p.add_(1.0)
    m.after_update(CLOCK)
    tau = momentum(0.9, Clock(4, 10, 2))  # the one with which the next keys are made
    for a, b in zip(before, m.momentum_encoder.parameters(), strict=True):
        torch.testing.assert_close(b, a + (1 - tau))


def test_heads_have_three_and_two_layers_and_end_in_a_plain_norm():
    m = make()
    projector, predictor = m.base[1], m.predictor
    for head, layers in ((projector, 3), (predictor, 2)):
        linear = [x for x in head if isinstance(x, torch.nn.Linear)]
        assert len(linear) == layers and all(x.bias is None for x in linear)
        assert isinstance(head[-1], torch.nn.BatchNorm1d) and head[-1].weight is None
    conv = make("resnet_nano")
    assert isinstance(conv.predictor[-1], torch.nn.Linear)


def test_paper_recipe_has_the_papers_numbers():
    r = MoCoV3.paper_recipe(RecipeContext(image_size=224, images=1_281_167, patch_size=16))
    assert (r.optim.lr, r.optim.weight_decay) == (pytest.approx(2.4e-3), 0.1)
    assert r.optim.decay_all and r.optim.warmup_epochs == 40
    assert (r.options.temperature, r.options.key_momentum, r.options.hidden) == (0.2, 0.99, 4096)

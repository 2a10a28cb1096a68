"""The embedding by the class token is that of the whole network, and costs less."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nolabel import backbones
from nolabel.backbones import vit
from nolabel.backbones.base import recompute

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
KINDS = {
    "plain": {},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "scaled layers": {"init_values": 0.1},
    "normed queries": {"qk_norm": True},
    "no biases": {"qkv_bias": False},
}


def network(**kwargs):
    torch.manual_seed(0)
    return backbones.build(
        "vit_tiny_patch16_224", image_size=24, patch_size=4, kwargs=SMALL | kwargs
    ).double()


def images(n=3):
    return torch.randn(n, 3, 24, 24, generator=torch.Generator().manual_seed(1)).double()


def outcome(net, embed):
    """The embedding and all gradients, with the same draws of stochastic depth."""
    torch.manual_seed(2)
    net.zero_grad()
    z = embed(images())
    (z.square() * torch.arange(z.shape[1])).sum().backward()
    return z.detach(), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("depth", [0.0, 0.5])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_embedding_and_gradients_are_those_of_all_tokens(kind, again, depth):
    net = network(**KINDS[kind])
    net.set_drop_path(depth)
    recompute(net, again)
    for training in (True, False):
        net.train(training)
        (a, da), (b, db) = (outcome(net, f) for f in (lambda x: net.tokens(x).pooled, net))
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
        assert da.keys() == db.keys()
        for name in da:
            torch.testing.assert_close(db[name], da[name], rtol=1e-10, atol=1e-12)


def test_the_last_block_costs_a_fifth():
    def flops(embed):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            embed(images())
        return counter.get_total_flops()

    one, two = (network(depth=d, embed_dim=64).eval() for d in (1, 2))
    for net in (one, two):
        for block in net.net.blocks:
            block.attn.fused_attn = False  # whose products the counter sees
    block = flops(lambda x: two.tokens(x).pooled) - flops(lambda x: one.tokens(x).pooled)
    alone = block - (flops(lambda x: two.tokens(x).pooled) - flops(two))
    assert 1 / 6 < alone / block < 1 / 4


@pytest.mark.parametrize("kind", ["mean", "dropout", "dropped samples", "another block"])
def test_what_is_not_a_plain_block_before_a_class_token_goes_the_whole_way(kind, monkeypatch):
    kwargs = {"mean": {"global_pool": "avg"}, "dropout": {"proj_drop_rate": 0.5}}.get(kind, {})
    net = network(**kwargs).train()
    if kind == "dropped samples":
        net.set_drop_path(0.5, by_samples=True)
    if kind == "another block":
        net.net.blocks[-1] = type("Other", (type(net.net.blocks[-1]),), {})(32, 2).double()
    called = []
    monkeypatch.setattr(vit, "first_token_only", lambda *_: called.append(1))
    (a, da), (b, db) = (outcome(net, f) for f in (lambda x: net.tokens(x).pooled, net))
    assert not called
    assert torch.equal(a, b)
    assert all(torch.equal(da[n], db[n]) for n in da)

"""MoCo v2: an official training trace, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.backbones.base import Backbone
from nolabel.engine.optimiser import build_optimiser
from nolabel.methods.base import RecipeContext
from nolabel.methods.mocov2 import MoCoV2, info_nce
from nolabel.types import Batch, Clock, Optim, Tokens

ORACLE = Path(__file__).parents[1] / "oracles" / "mocov2_training.safetensors"
CLOCK = Clock(0, 10, 2)


class OneLayer(Backbone):
    """The oracle's encoder: one linear layer on flat vectors, no activation."""

    can = frozenset()

    def __init__(self):
        super().__init__()
        self.name, self.kwargs, self.dim, self.depth = "linear", {}, 12, 1
        self.image_size, self.patch_size = 1, 1

    def tokens(self, x, mask=None, keep=None, mask_token=None):
        return Tokens(x, x[:, None], (1, 1))


def make(**changes):
    torch.manual_seed(0)
    options = {"hidden": 32, "projection": 16, "queue": 20, **changes}
    return MoCoV2(build("resnet_nano", image_size=32), MoCoV2.Options(**options))


def batch(seed=0, b=6):
    g = torch.Generator().manual_seed(seed)
    return Batch(views={"view": torch.randn(2, b, 3, 32, 32, generator=g)})


def test_a_whole_training_matches_the_official_trace():
    """The oracle's encoder is linear, ReLU, linear: that is our head on vectors as they are."""
    o = load_file(ORACLE)
    options = MoCoV2.Options(queue=24, key_momentum=0.9, hidden=12, projection=8)
    m = MoCoV2(OneLayer(), options)
    for net, name in ((m.query, "encoder_q"), (m.key.module, "encoder_k")):
        net[1].load_state_dict({k: o[f"init.{name}.fc.{k}"] for k in net[1].state_dict()})
    m.queue.value.copy_(o["init.queue"].T)
    optim = Optim(name="sgd", lr=0.3, weight_decay=1e-4, decay_all=True)
    optimiser = build_optimiser(m, optim)
    for step in range(5):
        clock = Clock(step, 5, 5)
        views = torch.stack([o[f"q{step}"], o[f"k{step}"]])
        loss = m.step(Batch(views={"view": views}), clock).loss
        assert loss.item() == pytest.approx(o["losses"][step].item(), rel=1e-4)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step < 4:
            m.after_update(clock)
    m.queue.update()  # the official key encoder moves when the next keys are made
    for net, name in ((m.query, "encoder_q"), (m.key.module, "encoder_k")):
        for k, v in net[1].state_dict().items():
            torch.testing.assert_close(v, o[f"end.{name}.fc.{k}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(m.queue.value, o["end.queue"].T, rtol=0, atol=1e-4)
    assert int(m.queue.count) % 24 == int(o["end.queue_ptr"])


def test_loss_equals_the_naive_computation():
    g = torch.Generator().manual_seed(0)
    q, k = F.normalize(torch.randn(2, 5, 8, generator=g).double(), dim=-1)
    queue = F.normalize(torch.randn(9, 8, generator=g).double(), dim=-1)
    total = 0.0
    for a, p in zip(q, k, strict=True):
        top = torch.exp(a @ p / 0.2)
        total -= torch.log(top / (top + sum(torch.exp(a @ n / 0.2) for n in queue))).item()
    assert info_nce(q, k, queue, 0.2).item() == pytest.approx(total / 5, rel=1e-9)


def test_new_keys_replace_the_oldest_in_order():
    m = make(queue=8)
    for i in range(1, 4):
        m.queue.observe(torch.full((3, 16), float(i)), i)
        m.queue.update()
    assert m.queue.value[:, 0].tolist() == [3.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0]


def test_keys_enter_the_queue_after_the_loss_and_only_with_the_update():
    m = make()
    before = m.queue.value.clone()
    m.step(batch(), CLOCK)
    assert torch.equal(m.queue.value, before)
    m.after_update(CLOCK)
    assert (m.queue.value != before).any(1).sum() == 6


def test_a_skipped_step_leaves_the_queue_alone():
    m = make()
    m.step(batch(0), Clock(0, 10, 2))  # the guard skips this one: no after_update
    m.step(batch(1), Clock(1, 10, 2))
    m.after_update(Clock(1, 10, 2))
    assert int(m.queue.count) == 6


def test_micro_batches_enqueue_as_one_large_batch():
    whole, parts = make(), make()
    data = batch(0, 8)
    whole.eval(), parts.eval()
    whole.step(data, CLOCK)
    for half in data.views["view"].split(4, 1):
        parts.step(Batch(views={"view": half}), CLOCK)
    whole.after_update(CLOCK), parts.after_update(CLOCK)
    torch.testing.assert_close(whole.queue.value, parts.queue.value)


def test_key_encoder_starts_equal_gets_no_gradient_and_moves_by_the_moving_average():
    m = make(key_momentum=0.75)
    for a, b in zip(m.query.parameters(), m.key.parameters(), strict=True):
        assert torch.equal(a, b)
    m.step(batch(), CLOCK).loss.backward()
    assert all(p.grad is None for p in m.key.parameters())
    before = [p.clone() for p in m.key.parameters()]
    with torch.no_grad():
        for p in m.query.parameters():
            p.add_(1.0)
    m.after_update(CLOCK)
    for a, b in zip(before, m.key.parameters(), strict=True):
        torch.testing.assert_close(b, a + 0.25)


def test_queue_survives_a_checkpoint():
    m = make()
    m.step(batch(), CLOCK)
    m.after_update(CLOCK)
    fresh = make()
    fresh.load_state_dict(m.state_dict())
    assert torch.equal(fresh.queue.value, m.queue.value) and int(fresh.queue.count) == 6


def test_infomin_views_change_colour_twice_as_much():
    plain, strong = (
        MoCoV2.views(MoCoV2.Options(infomin=i), 224).views[0].jitter for i in (False, True)
    )
    assert strong == tuple(2 * v for v in plain)


def test_paper_recipe_has_the_papers_numbers():
    r = MoCoV2.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    assert (r.optim.name, r.optim.lr, r.optim.weight_decay) == ("sgd", pytest.approx(0.03), 1e-4)
    o = r.options
    assert (o.queue, o.temperature, o.key_momentum) == (65536, 0.2, 0.999)

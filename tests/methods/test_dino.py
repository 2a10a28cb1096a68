"""DINO: official numbers, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.engine.optimiser import build_optimiser, set_rates
from nolabel.engine.step import apply_update
from nolabel.methods.dino import DINO
from nolabel.nn.heads import PrototypeHead
from nolabel.nn.losses import cross_entropy_views
from nolabel.nn.schedules import learning_rate, momentum, per_epoch_linear, weight_decay
from nolabel.nn.state import Centre
from nolabel.types import Batch, Clock, Optim

ORACLES = Path(__file__).parents[1] / "oracles"


def small_vit():
    return build(
        "vit_tiny_patch16_224",
        image_size=32,
        patch_size=8,
        kwargs={"embed_dim": 48, "depth": 3, "num_heads": 3},
    )


def options(**changes):
    base = {
        "prototypes": 64,
        "hidden": 32,
        "bottleneck": 16,
        "norm_last_layer": True,
        "drop_path": 0.0,
        "local_crops": 4,
        "local_size": 16,
        "teacher_temperature": 0.07,
        "warmup_teacher_temperature_epochs": 1,
    }
    return DINO.Options(**{**base, **changes})


def batch(seed=0, b=4, local_crops=4):
    g = torch.Generator().manual_seed(seed)
    views = {"global": torch.randn(2, b, 3, 32, 32, generator=g)}
    if local_crops:
        views["local"] = torch.randn(local_crops, b, 3, 16, 16, generator=g)
    return Batch(views=views)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return DINO(small_vit(), options())


def test_loss_gradient_and_centre_match_the_official_numbers():
    o = load_file(ORACLES / "dino_loss.safetensors")
    centre = Centre(64, 0.9)
    centre.value.copy_(o["center_before"])
    for epoch in (0, 1, 5):
        student = o[f"epoch{epoch}.student"].unflatten(0, (6, 5)).requires_grad_()
        teacher = o[f"epoch{epoch}.teacher"].unflatten(0, (2, 5))
        tau = per_epoch_linear(0.04, 0.07, 3, Clock(epoch, 10, 1))
        targets = ((teacher - centre.value) / tau).softmax(-1)
        loss = cross_entropy_views(targets, student / 0.1)
        (grad,) = torch.autograd.grad(loss, student)
        centre.observe(teacher, epoch)
        centre.update()
        torch.testing.assert_close(loss, o[f"epoch{epoch}.loss"], rtol=1e-5, atol=1e-6)
        expected = o[f"epoch{epoch}.student_grad"].unflatten(0, (6, 5))
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(centre.value, o[f"epoch{epoch}.center_after"])


def test_head_matches_the_official_numbers():
    o = load_file(ORACLES / "dino_head.safetensors")
    head = PrototypeHead(32, 64, hidden=48, bottleneck=16, norm_last_layer=False)
    head.load_state_dict({k[2:]: v for k, v in o.items() if k.startswith("w.")})
    torch.testing.assert_close(head(o["x"]), o["y"], rtol=1e-5, atol=1e-6)


def test_backbone_matches_the_official_network_at_every_size():
    o = load_file(ORACLES / "dino_vit.safetensors")
    b = small_vit().eval()
    b.net.load_state_dict({k[2:]: v for k, v in o.items() if k.startswith("w.")})
    for size in ("native", "large", "small", "wide"):
        x = o[f"{size}.x"]
        torch.testing.assert_close(b.tokens(x).pooled, o[f"{size}.cls"], rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(b.attention(x), o[f"{size}.attention"], rtol=1e-5, atol=1e-6)
        last = [torch.cat([t.prefix, t.patches], 1) for t in b.layers(x, 2)]
        torch.testing.assert_close(torch.stack(last), o[f"{size}.last2"], rtol=1e-5, atol=3e-6)


def test_schedules_match_the_official_numbers():
    o = load_file(ORACLES / "dino_schedules.safetensors")
    optim = Optim(lr=5e-4, lr_end=1e-6, warmup_epochs=2, weight_decay=0.04, weight_decay_end=0.4)
    clocks = [Clock(i, 35, 7) for i in range(35)]
    for name, ours in (
        ("lr", [learning_rate(optim, c) for c in clocks]),
        ("wd", [weight_decay(optim, c) for c in clocks]),
        ("momentum", [momentum(0.996, c) for c in clocks]),
    ):
        torch.testing.assert_close(
            torch.tensor(ours, dtype=torch.float64), o[name], rtol=1e-9, atol=1e-15
        )


def test_schedules_match_those_of_the_official_training():
    o = load_file(ORACLES / "dino_training.safetensors")
    optim = Optim(weight_decay=0.04, weight_decay_end=0.4)
    for step in range(9):
        clock = Clock(step, 9, 3)
        assert momentum(0.9, clock) == pytest.approx(o["momentum"][step].item(), rel=1e-9)
        assert weight_decay(optim, clock) == pytest.approx(o["wd"][step].item(), rel=1e-9)


def of_the_oracle(o, when):
    """The oracle's tensors by our names."""
    named = {k[len(when) + 1 :]: v for k, v in o.items() if k.startswith(f"{when}.")}
    return {k.replace("backbone.", "backbone.net."): v for k, v in named.items()}


def test_nine_whole_steps_match_the_official_training():
    """Weights, losses, teacher and centre, through clipping, freezing, warm-up and EMA."""
    o = load_file(ORACLES / "dino_training.safetensors")
    method = DINO(small_vit(), options(teacher_momentum=0.9))
    for net in (method.student, method.teacher.module):
        net.load_state_dict(of_the_oracle(o, "init"))
    optim = Optim(clip=0.3, clip_by="tensor")
    optimiser = build_optimiser(method, optim)
    for step in range(9):
        clock = Clock(step, 9, 3)
        for group in optimiser.param_groups:
            group["lr"] = float(o["lr"][step])
            group["weight_decay"] = float(o["wd"][step]) if group["decay"] else 0.0
        views = {"global": o[f"step{step}.globals"], "local": o[f"step{step}.locals"]}
        loss = method.step(Batch(views=views), clock).loss
        assert loss.item() == pytest.approx(o["losses"][step].item(), rel=1e-5)
        loss.backward()
        apply_update(method, optimiser, optim, clock)
    for net, who in ((method.student, "student"), (method.teacher.module, "teacher")):
        expected = of_the_oracle(o, f"{who}_end")
        assert expected.keys() == net.state_dict().keys()
        for key, value in net.state_dict().items():
            kept = torch.ones(len(value), dtype=torch.bool)
            if key.endswith("qkv.bias"):
                # The keys' biases cancel in the softmax: their gradients are rounding errors, which
                # Adam scales up to the learning rate.
                kept[48:96] = False
            torch.testing.assert_close(
                value[kept], expected[key][kept], rtol=1e-3, atol=1e-5, msg=key
            )
    torch.testing.assert_close(method.centre.value, o["center_end"], rtol=1e-4, atol=1e-5)


def train(method, steps=3, optim=None, spe=2, seed=0):
    optim = optim or Optim(lr=1e-3, warmup_epochs=0)
    optimiser = build_optimiser(method, optim)
    for step in range(steps):
        clock = Clock(step, 10, spe)
        set_rates(optimiser, optim, clock)
        method.step(batch(seed + step), clock).loss.backward()
        apply_update(method, optimiser, optim, clock)


def test_teacher_starts_equal_to_student(method):
    for a, b in zip(method.student.parameters(), method.teacher.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_teacher_moves_only_by_the_moving_average(method):
    before = [p.clone() for p in method.teacher.module.parameters()]
    method.step(batch(), Clock(0, 10, 2)).loss.backward()
    assert all(p.grad is None for p in method.teacher.module.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(before, method.teacher.module.parameters(), strict=True)
    )
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    clock = Clock(0, 10, 2)
    method.after_update(clock)
    m = method.momentum(clock)
    for old, new in zip(before, method.teacher.module.parameters(), strict=True):
        torch.testing.assert_close(new, old + (1 - m), rtol=1e-4, atol=1e-6)


def test_teacher_is_the_branch_to_judge(method):
    assert method.encoder is method.teacher.module.backbone


def test_local_crops_reach_the_loss(method):
    views = {k: v.clone().requires_grad_() for k, v in batch().views.items()}
    method.step(Batch(views=views), Clock(0, 10, 2)).loss.backward()
    assert views["local"].grad.abs().amin(dim=(1, 2, 3, 4)).shape == (4,)
    assert (views["local"].grad.abs().sum(dim=(1, 2, 3, 4)) > 0).all()


def test_two_classes_and_three_crops_make_four_terms_by_hand():
    targets = torch.tensor([[[0.9, 0.1]], [[0.3, 0.7]]])
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, -0.5]]])
    q = logits.log_softmax(-1)
    by_hand = [-(targets[t, 0] * q[v, 0]).sum() for t in (0, 1) for v in (0, 1, 2) if t != v]
    assert len(by_hand) == 4
    torch.testing.assert_close(cross_entropy_views(targets, logits), torch.stack(by_hand).mean())


def test_centre_does_not_move_before_the_loss_is_computed(method):
    method.step(batch(), Clock(0, 10, 2))
    assert torch.equal(method.centre.value, torch.zeros(1, 64))
    method.after_update(Clock(0, 10, 2))
    assert method.centre.value.abs().sum() > 0


def test_accumulated_micro_batches_move_the_centre_like_the_large_batch():
    logits = torch.randn(2, 8, 64)
    whole, parts = Centre(64), Centre(64)
    whole.observe(logits, 0)
    parts.observe(logits[:, :4], 0)
    parts.observe(logits[:, 4:], 0)
    whole.update()
    parts.update()
    torch.testing.assert_close(whole.value, parts.value)


def test_a_skipped_step_leaves_no_trace_in_the_centre():
    good, after_bad = Centre(4), Centre(4)
    after_bad.observe(torch.full((2, 3, 4), float("nan")), 0)  # and no update: skipped
    for centre in (good, after_bad):
        centre.observe(torch.ones(2, 3, 4), 1)
        centre.update()
    assert torch.equal(good.value, after_bad.value)


def test_centre_survives_a_checkpoint(method):
    train(method)
    other = DINO(small_vit(), options())
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.centre.value, method.centre.value)
    assert method.centre.value.abs().sum() > 0


def test_last_layer_is_frozen_in_the_first_epoch_and_moves_after_it():
    torch.manual_seed(0)
    method = DINO(small_vit(), options(norm_last_layer=False))
    start = method.student.head.last_layer.weight_v.clone()
    train(method, steps=2, spe=2)
    assert torch.equal(method.student.head.last_layer.weight_v, start)
    train(method, steps=4, spe=2)
    assert not torch.equal(method.student.head.last_layer.weight_v, start)


def test_prototypes_keep_unit_norm_when_asked():
    fixed = DINO(small_vit(), options(norm_last_layer=True)).student.head.last_layer
    free = DINO(small_vit(), options(norm_last_layer=False)).student.head.last_layer
    assert not fixed.weight_g.requires_grad
    assert free.weight_g.requires_grad
    assert torch.equal(fixed.weight_g, torch.ones(64, 1))


def test_batch_norm_in_the_head_spreads_alike_inputs_over_the_prototypes():
    """Embeddings of a fresh network differ by little; without it their logits are all but equal."""
    torch.manual_seed(0)
    x = torch.randn(1, 16) + 0.01 * torch.randn(64, 16)
    spread = {}
    for batch_norm in (False, True):
        head = PrototypeHead(16, 32, hidden=24, bottleneck=8, batch_norm=batch_norm)
        spread[batch_norm] = float(head(x).detach().std(0).mean())
    assert spread[True] > 10 * spread[False], spread


def test_stochastic_depth_is_in_the_student_only():
    method = DINO(small_vit(), options(drop_path=0.5))

    def drops(net):
        return [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]

    assert drops(method.student)
    assert max(drops(method.student)) == pytest.approx(0.5)
    assert drops(method.teacher) == []


def test_teacher_temperature_warms_up_by_epochs():
    method = DINO(small_vit(), options(warmup_teacher_temperature_epochs=3))
    taus = [method.teacher_temperature(Clock(e * 2, 20, 2)) for e in range(5)]
    assert taus == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])


def test_paper_recipe_has_the_papers_numbers():
    from nolabel.methods.base import RecipeContext

    r = DINO.paper_recipe(RecipeContext(image_size=224, images=1_281_167))
    assert r.optim.lr == pytest.approx(5e-4 * 1024 / 256)
    assert (r.optim.weight_decay, r.optim.weight_decay_end) == (0.04, 0.4)
    assert (r.optim.clip, r.optim.clip_by) == (3.0, "tensor")
    assert r.options.prototypes == 65536
    plan = {v.name: v for v in DINO.views(r.options, 224).views}
    assert (plan["global"].count, plan["local"].count, plan["local"].size) == (2, 8, 96)
    assert plan["global"].blur == (1.0, 0.1)
    assert plan["global"].solarise == (0.0, 0.2)

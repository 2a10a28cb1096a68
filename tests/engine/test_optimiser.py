"""Which tensors decay, what each optimiser is, how gradients are measured and shortened."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nolabel.engine.lars import Lars
from nolabel.engine.optimiser import (
    build_optimiser,
    clip_gradients,
    gradient_norm,
    set_rates,
)
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.siglip import SigLIP
from nolabel.nn.schedules import learning_rate
from nolabel.testing import TINY, build_small
from nolabel.types import Clock, Optim

ORACLES = Path(__file__).parents[1] / "oracles"


class Net(nn.Module):
    """One tensor of every sort that a method has."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 4))
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Module()
        self.table.bias = nn.Parameter(torch.randn(2, 3))  # a bias of two dimensions
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6, bias=False))
        self.weight_g = nn.Parameter(torch.ones(6, 1))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def named(net, optimiser, decay):
    names = {id(p): n for n, p in net.named_parameters()}
    groups = [g for g in optimiser.param_groups if g["decay"] is decay]
    return sorted(names[id(p)] for g in groups for p in g["params"])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_tokens_positions_and_both_parts_of_weight_norm_decay_and_biases_do_not(name):
    net = Net()
    optimiser = build_optimiser(net, Optim(name=name))
    assert named(net, optimiser, True) == [
        "cls_token",
        "fc.weight",
        "last.parametrizations.weight.original0",  # weight_g, of shape (K, 1)
        "last.parametrizations.weight.original1",  # weight_v
        "pos_embed",
        "weight_g",
    ]
    assert named(net, optimiser, False) == ["fc.bias", "norm.bias", "norm.weight", "table.bias"]


def test_betas_and_momentum_come_from_the_options():
    net = nn.Linear(2, 2)
    adamw = build_optimiser(net, Optim(beta1=0.8, beta2=0.95))
    assert adamw.param_groups[0]["betas"] == (0.8, 0.95)
    sgd = build_optimiser(net, Optim(name="sgd", beta1=0.7)).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"]) == (0.7, False)
    lars = build_optimiser(net, Optim(name="lars", beta1=0.7)).param_groups[0]
    assert (lars["momentum"], lars["eta"]) == (0.7, 0.001)


def test_an_unknown_optimiser_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="adamw"):
        build_optimiser(nn.Linear(2, 2), Optim(name="adam"))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_the_rates_of_a_step_are_what_the_optimiser_applies(name):
    """At rate 0 nothing moves; a tensor without decay and without gradient force stays."""
    net = Net()
    optim = Optim(name=name, lr=0.1, warmup_epochs=1, weight_decay=0.2, weight_decay_end=0.4)
    optimiser = build_optimiser(net, optim)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    set_rates(optimiser, optim, Clock(0, 20, 10))
    optimiser.step()
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    clock = Clock(9, 20, 10)
    set_rates(optimiser, optim, clock)
    assert {g["lr"] for g in optimiser.param_groups} == {learning_rate(optim, clock)}
    optimiser.step()
    moved = sorted(n for n, p in net.named_parameters() if not torch.equal(p, before[n]))
    assert moved == named(net, optimiser, True)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_tensor_without_gradient_is_left_alone_everywhere(name):
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    net = nn.Sequential(a, b)
    optim = Optim(name=name, clip=0.1, weight_decay=0.5)
    optimiser = build_optimiser(net, optim)
    before = b.weight.detach().clone()
    a(torch.ones(1, 3)).sum().backward()
    clip_gradients(net, optim)
    assert gradient_norm(net.parameters()).item() == pytest.approx(0.1, rel=1e-4)
    optimiser.step()
    assert torch.equal(b.weight, before)
    assert b.weight not in optimiser.state


def test_lars_gives_one_dimensional_tensors_plain_momentum():
    w, b = nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.full((2,), 2.0))
    groups = [
        {"params": [w], "decay": True, "weight_decay": 0.1},
        {"params": [b], "decay": False, "weight_decay": 0.0},
    ]
    optimiser = Lars(groups, lr=0.5, momentum=0.9)
    w.grad, b.grad = torch.ones(2, 2), torch.ones(2)
    optimiser.step()
    # The direction is g + 0.1 w = 1.2; its length becomes eta * |w| = 0.004 over four entries.
    torch.testing.assert_close(w.data, torch.full((2, 2), 2.0 - 0.5 * 0.002))
    torch.testing.assert_close(b.data, torch.full((2,), 1.5))
    optimiser.step()
    torch.testing.assert_close(b.data, torch.full((2,), 1.5 - 0.5 * 1.9))


def test_lars_moves_a_matrix_of_zeros_by_its_plain_gradient():
    w = nn.Parameter(torch.zeros(2, 2))
    optimiser = Lars([{"params": [w], "decay": True, "weight_decay": 0.1}], lr=0.5)
    w.grad = torch.ones(2, 2)
    optimiser.step()
    assert torch.equal(w.data, torch.full((2, 2), -0.5))


def test_lars_goes_on_from_a_saved_state_exactly():
    def steps(optimiser, net, count):
        for i in range(count):
            for k, p in enumerate(net.parameters()):
                g = torch.Generator().manual_seed(10 * i + k)
                p.grad = torch.randn(p.shape, generator=g)
            optimiser.step()

    optim = Optim(name="lars", lr=0.3)
    whole, half = nn.Linear(3, 3), nn.Linear(3, 3)
    first = build_optimiser(whole, optim)
    steps(first, whole, 3)
    second = build_optimiser(half, optim)
    half.load_state_dict(whole.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch shares the tensors
    steps(first, whole, 2)
    steps(second, half, 2)
    both = zip(whole.parameters(), half.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("clip", [0.5, 3.0, 1e3])
def test_clipping_by_global_norm_equals_torchs(clip):
    ours, theirs = Net(), Net()
    for i, (a, b) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
        a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(i))
        b.grad = a.grad.clone()
    clip_gradients(ours, Optim(clip=clip))
    total = nn.utils.clip_grad_norm_(theirs.parameters(), clip)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    if clip == 1e3:
        assert gradient_norm(ours.parameters()).item() == pytest.approx(total.item())


@pytest.mark.parametrize("clip", [0.5, 3.0])
def test_clipping_by_tensor_equals_torchs_on_each_tensor(clip):
    net = Net()
    for i, p in enumerate(net.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    wanted = []
    for p in net.parameters():
        twin = nn.Parameter(torch.zeros_like(p))
        twin.grad = p.grad.clone()
        nn.utils.clip_grad_norm_([twin], clip)
        wanted.append(twin.grad)
    clip_gradients(net, Optim(clip=clip, clip_by="tensor"))
    for p, grad in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad)


@pytest.mark.parametrize("how", ["global", "tensor"])
def test_clipping_where_nothing_has_a_gradient_does_nothing(how):
    p = nn.Parameter(torch.ones(2))
    clip_gradients(nn.ParameterList([p]), Optim(clip=1.0, clip_by=how))
    assert p.grad is None
    assert gradient_norm([p]).item() == 0.0


def test_an_unknown_way_to_clip_is_refused():
    with pytest.raises(UsageError, match="tensor"):
        clip_gradients(nn.ParameterList([torch.ones(2)]), Optim(clip=1.0, clip_by="tensors"))


def test_the_gradient_norm_is_taken_in_fp32():
    """300 entries of 300 have squares beyond fp16."""
    p = nn.Parameter(torch.zeros(300, dtype=torch.float16))
    p.grad = torch.full((300,), 300.0, dtype=torch.float16)
    norm = gradient_norm([p])
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(300 * 300**0.5, rel=1e-4)
    clip_gradients(nn.ParameterList([p]), Optim(clip=1.0))
    assert p.grad.float().norm().item() == pytest.approx(1.0, rel=1e-2)


def test_larc_scales_every_tensor_by_its_own_norms():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optim = Optim(name="larc", lr=0.5, weight_decay=0.1, decay_all=True, beta1=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    grads = [torch.randn_like(p) for p in before]
    for p, g in zip(net.parameters(), grads, strict=True):
        p.grad = g.clone()
    build_optimiser(net, optim).step()
    for p, w, g in zip(net.parameters(), before, grads, strict=True):
        ratio = 0.001 * w.norm() / (g.norm() + 0.1 * w.norm())
        torch.testing.assert_close(p.detach(), w - 0.5 * ratio * (g + 0.1 * w))


def test_plain_tensors_may_have_a_rate_of_their_own():
    net = nn.Linear(3, 2)
    optim = Optim(name="lars", lr=0.2, lr_plain=0.005, warmup_epochs=0, lr_end=0.0)
    optimiser = build_optimiser(net, optim)
    for step, factor in ((0, 1.0), (50, 0.5)):
        set_rates(optimiser, optim, Clock(step, 100, 10))
        rates = {g["decay"]: g["lr"] for g in optimiser.param_groups}
        assert rates == {True: pytest.approx(0.2 * factor), False: pytest.approx(0.005 * factor)}


def test_layer_decay_gives_deeper_blocks_larger_rates():
    from nolabel.backbones import build

    net = nn.ModuleDict({"student": build("vit_pico", image_size=32), "head": nn.Linear(2, 2)})
    optim = Optim(lr=1.0, layer_decay=0.5, lr_patch=0.2)
    scale = {}
    for group in build_optimiser(net, optim).param_groups:
        scale |= {id(p): group["scale"] for p in group["params"]}
    of = {n: scale[id(p)] for n, p in net.named_parameters()}
    assert of["student.net.cls_token"] == of["student.net.pos_embed"] == 0.5**5
    assert of["student.net.patch_embed.proj.weight"] == pytest.approx(0.2 * 0.5**5)
    assert [of[f"student.net.blocks.{i}.attn.qkv.weight"] for i in range(4)] == [
        0.5**4, 0.5**3, 0.5**2, 0.5
    ]  # fmt: skip
    assert of["student.net.norm.weight"] == of["head.weight"] == 1.0


def test_clipping_by_module_takes_each_network_alone():
    net = nn.ModuleDict({"student": nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})})
    for i, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, float(i + 1))
    clip_gradients(net, Optim(clip=1.0, clip_by="module"))
    for part in net["student"].values():
        assert gradient_norm(part.parameters()).item() == pytest.approx(1.0, rel=1e-5)


def test_lars_matches_the_official_numbers():
    """Four updates from the start, every weight after each."""
    o = load_file(ORACLES / "lars.safetensors")
    w, b = nn.Parameter(o["w0"].clone()), nn.Parameter(o["b0"].clone())
    groups = [
        {"params": [w], "decay": True, "weight_decay": 0.01},
        {"params": [b], "decay": False, "weight_decay": 0.0},
    ]
    optimiser = Lars(groups, lr=0.2, momentum=0.9)
    for i in range(4):
        w.grad, b.grad = o[f"gw{i}"].clone(), o[f"gb{i}"].clone()
        optimiser.step()
        torch.testing.assert_close(w.data, o[f"w{i + 1}"], rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(b.data, o[f"b{i + 1}"], rtol=1e-4, atol=2e-6)


def test_larc_matches_the_official_numbers():
    """Three updates of three tensors: one without gradient at two steps, one that starts at 0."""
    o = load_file(ORACLES / "larc.safetensors")
    names = ("plain", "resting", "zero_start")
    tensors = {n: nn.Parameter(o[f"start.{n}"].clone()) for n in names}
    group = {"params": list(tensors.values()), "decay": True, "weight_decay": 0.1}
    optimiser = Lars([group], lr=0.3, momentum=0.9, larc=True)
    for step in range(3):
        for n, p in tensors.items():
            p.grad = o[f"step{step}.grad.{n}"].clone()
        optimiser.step()
        for n, p in tensors.items():
            expected = o[f"scaled.step{step}.{n}"]
            torch.testing.assert_close(p.data, expected, rtol=1e-5, atol=1e-7, msg=n)


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 4), requires_grad=False)
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.weight_g = nn.Parameter(torch.ones(4, 1))


def test_matrices_and_tokens_decay_and_one_dimensional_tensors_do_not():
    net = SmallNet()
    groups = build_optimiser(net, Optim()).param_groups
    decayed = {id(p) for g in groups if g["decay"] for p in g["params"]}
    named = {n for n, p in net.named_parameters() if id(p) in decayed}
    assert named == {"cls_token", "fc.weight", "weight_g"}
    assert sum(len(g["params"]) for g in groups) == 6  # the fixed positions are not trained


def test_weight_decay_schedule_reaches_the_decayed_group_alone():
    net = SmallNet()
    optim = Optim(weight_decay=0.04, weight_decay_end=0.4, warmup_epochs=0)
    optimiser = build_optimiser(net, optim)
    set_rates(optimiser, optim, Clock(5, 10, 5))
    by_decay = {g["decay"]: g["weight_decay"] for g in optimiser.param_groups}
    assert by_decay[True] == pytest.approx(0.22)
    assert by_decay[False] == 0.0


@pytest.mark.parametrize("how", ["tensor", "global"])
def test_clipping_shortens_each_tensor_or_all_together(how):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_gradients(torch.nn.ParameterList([a, b]), Optim(clip=1.0, clip_by=how))
    if how == "tensor":
        assert a.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
        assert b.grad.norm().item() == pytest.approx(0.5)
    else:
        assert gradient_norm([a, b]).item() == pytest.approx(1.0, rel=1e-4)
        assert (a.grad / b.grad)[0].item() == pytest.approx(10.0)


@pytest.mark.parametrize("name", ["plain", "clipped"])
def test_decay_that_is_added_after_the_rate_equals_big_visions(name):
    """AdamW multiplies the decay by the rate, so it gets the decay divided by the peak rate."""
    numbers = load_file(ORACLES / "siglip_step.safetensors")
    lr, decay = 0.01, 0.05
    optim = Optim(
        lr=lr, weight_decay=decay / lr, undecayed=("embedding",), beta2=0.95,
        clip=1.0 if name == "clipped" else None,
    )  # fmt: skip
    net = nn.Module()
    for key in ("kernel", "bias", "embedding", "logit_scale"):
        setattr(net, key, nn.Parameter(numbers[f"start.{key}"].double()))
    optimiser = build_optimiser(net, optim)
    for step, factor in enumerate(numbers["factor"].tolist()):
        for group in optimiser.param_groups:
            group["lr"] = lr * factor
        for key, p in net.named_parameters():
            p.grad = numbers[f"step{step}.grad.{key}"].double()
        clip_gradients(net, optim)
        optimiser.step()
        for key, p in net.named_parameters():
            expected = numbers[f"{name}.step{step}.{key}"].double()
            assert torch.allclose(p, expected, rtol=1e-5, atol=1e-7), (step, key)


def test_siglips_paper_recipe_shrinks_kernels_by_a_ten_thousandth_and_no_embedding():
    recipe = SigLIP.paper_recipe(RecipeContext(image_size=32, images=1000, patch_size=8))
    method = build_small(SigLIP, SigLIP.Options(**TINY["siglip"]), "vit_pico")
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    optimiser = build_optimiser(method, recipe.optim)
    for p in method.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()  # at the peak rate
    for name, p in method.named_parameters():
        old = before[name]
        embeds = "embed" in name and "patch_embed" not in name
        kernel = p.ndim >= 2 and not embeds and "token" not in name
        assert torch.allclose(p, old * (1 - 1e-4) if kernel else old, rtol=1e-5), name
    assert recipe.optim.clip == 1.0

"""DINOv2: official numbers, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.dinov2 import DINOv2
from nolabel.nn import losses
from nolabel.nn.assignment import sinkhorn
from nolabel.nn.koleo import koleo as koleo_of
from nolabel.nn.masked import PrototypeLogits, masked_cross_entropy
from nolabel.types import Batch, Clock

ORACLE = Path(__file__).parents[1] / "oracles" / "dinov2_losses.safetensors"
CLOCK = Clock(3, 10, 2)


def make(**changes):
    torch.manual_seed(0)
    base = {"prototypes": 24, "patch_prototypes": 20, "hidden": 32, "bottleneck": 16,
            "patch_bottleneck": 12, "drop_path": 0.0, "local_crops": 2, "local_size": 16,
            "mask_ratio": (0.3, 0.5), "layer_scale": 0.0}  # fmt: skip
    options = DINOv2.Options(**{**base, **changes})
    net = build("vit_pico", image_size=32, kwargs=DINOv2.backbone_kwargs(options))
    DINOv2.init(net)
    return DINOv2(net, options)


def batch(seed=0, b=4):
    g = torch.Generator().manual_seed(seed)
    large, small = (torch.randn(2, b, 3, s, s, generator=g) for s in (32, 16))
    return Batch(views={"global": large, "local": small})


def half_masked(b=4):
    masks = torch.zeros(2 * b, 64, dtype=torch.bool)
    masks[: 2 * b - 1, ::3] = True
    return masks


def step(m, data, masks):
    """A step that hides just these patches."""
    m.draw_masks = lambda *_: masks
    return m.step(data, CLOCK)


class Logits(torch.nn.Module):
    def forward(self, x):
        return x


def test_sinkhorn_matches_the_official_targets():
    o = load_file(ORACLE)
    ours = sinkhorn(o["teacher"], 0.07, 3)
    torch.testing.assert_close(ours, o["sinkhorn_t07"], rtol=1e-4, atol=1e-6)


def test_loss_over_pairs_matches_the_official_sum():
    o = load_file(ORACLE)
    pairs = losses.cross_entropy_views(o["targets"], o["students"] / 0.1, skip_same=False)
    torch.testing.assert_close(pairs * 2 * 4, o["loss_all_pairs"], rtol=1e-5, atol=1e-5)


def test_koleo_and_its_gradient_match_the_official_numbers():
    o = load_file(ORACLE)
    x = o["koleo_x"].requires_grad_()
    loss = koleo_of(x)
    (grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(loss, o["koleo"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, o["koleo_grad"], rtol=1e-4, atol=1e-6)


def test_masked_loss_and_its_gradient_match_the_official_numbers():
    """The oracle's targets are probabilities: their logarithms at temperature 1 give them back."""
    o = load_file(ORACLE)
    masks = o["ibot_masks"].bool()
    student = o["ibot_student"].requires_grad_()
    targets = PrototypeLogits(o["ibot_targets"].log(), Logits(), 1.0)
    loss = masked_cross_entropy(targets, PrototypeLogits(student, Logits(), 0.1), masks)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, o["ibot_loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, o["ibot_grad"], rtol=1e-4, atol=1e-7)


def test_koleos_neighbour_is_the_nearest_other_and_both_get_gradient():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.2], [-1.0, 0.1]], requires_grad=True)
    u = torch.nn.functional.normalize(x.detach().double(), dim=-1)
    d = torch.cdist(u, u).fill_diagonal_(torch.inf).amin(1)
    assert koleo_of(x).item() == pytest.approx(float(-d.log().mean()), rel=1e-4)
    koleo_of(x).backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_identical_features_have_a_finite_koleo_gradient():
    x = torch.ones(4, 8, requires_grad=True)
    koleo_of(x).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("centring", ["sinkhorn", "centre"])
def test_step_equals_the_plain_computation(centring):
    m = make(centring=centring).eval()
    for c in m.centres:
        c.value.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    data, masks = batch(), half_masked()
    crops = data.views["global"].flatten(0, 1)
    t, s, tau = m.teacher.module, m.student, m.teacher_temperature(CLOCK)
    seen = t.backbone.tokens(crops)
    hidden = s.backbone.tokens(crops, mask=masks, mask_token=m.mask_token)
    small = s.backbone(data.views["local"].flatten(0, 1))

    def targets(logits, centre):
        if centring == "sinkhorn":
            return sinkhorn(logits, tau)
        return ((logits - centre.value) / tau).softmax(-1)

    q = targets(t.head(seen.pooled), m.centres[0]).unflatten(0, (2, 4))
    p = (s.head(torch.cat([hidden.pooled, small])) / 0.1).log_softmax(-1).unflatten(0, (4, 4))
    pairs = [-(q[i] * p[v]).sum(-1).mean() for i in range(2) for v in range(4) if v != i]
    dino = torch.stack(pairs).mean()
    q = targets(t.patch_head(seen.patches[masks]), m.centres[1])
    ce = -(q * (s.patch_head(hidden.patches[masks]) / 0.1).log_softmax(-1)).sum(-1)
    images = masks.nonzero()[:, 0]
    ibot = sum(ce[images == i].mean() for i in range(7)) / 8
    koleo = koleo_of(hidden.pooled[:4]) + koleo_of(hidden.pooled[4:])
    expected = dino + ibot + 0.1 * koleo
    torch.testing.assert_close(step(m, data, masks).loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centring", ["sinkhorn", "centre"])
def test_rows_in_pieces_give_the_same_loss_and_gradients(centring):
    results = []
    for chunk in (0, 5):
        m = make(chunk=chunk, centring=centring)
        out = step(m, batch(), half_masked())
        out.loss.backward()
        results.append((out.loss, m.student.patch_head.mlp[0].weight.grad))
    (a, grad_a), (b, grad_b) = results
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-4, atol=1e-6)


def test_exactly_half_of_the_crops_are_masked_with_ratios_from_every_bin():
    m = make(mask_ratio=(0.1, 0.5))
    torch.manual_seed(0)
    masks = m.draw_masks(40, (16, 16))
    share = masks.float().mean(1)
    assert (share > 0).sum() == 20
    found = np.sort(share[share > 0].numpy())
    upper = 0.1 + 0.4 * (np.arange(20) + 1) / 20
    assert (found <= upper + 1e-6).all()
    assert found[-1] > 0.4


def test_temperature_rises_step_by_step():
    m = make(warmup_teacher_temperature_epochs=2)
    values = [m.teacher_temperature(Clock(i, 100, 10)) for i in (0, 19, 50)]
    assert values == [0.04, pytest.approx(0.07), 0.07]
    middle = m.teacher_temperature(Clock(5, 100, 10))
    assert middle == pytest.approx(0.04 + 0.03 * 5 / 19)


def test_dropped_samples_keep_their_input_and_the_mean_stays():
    net = build("vit_pico", image_size=32).train()
    net.set_drop_path(0.5, by_samples=True)
    x = torch.randn(8, 5, 64)
    branch = net._branch_of_samples(x, torch.ones_like)
    changed = (branch != x).flatten(1).any(1)
    assert changed.sum() == 4
    torch.testing.assert_close(branch[changed], x[changed] + 2.0)
    net.eval()
    y = torch.randn(2, 3, 32, 32)
    plain = build("vit_pico", image_size=32).eval()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(y), plain(y))


def test_the_teacher_drops_nothing():
    m = make(drop_path=0.4).train()
    assert m.student.backbone.sample_drop == 0.4
    assert m.teacher.module.backbone.sample_drop == 0.0


def test_network_options_reach_the_network_and_its_file_can_hold_them():
    m = make(registers=4, swiglu=True, layer_scale=1e-5)
    net = m.student.backbone.net
    assert net.reg_token.shape == (1, 4, 64)
    assert type(net.blocks[0].mlp).__name__ == "GluMlp"
    assert net.blocks[0].mlp.fc2.in_features == pytest.approx(64 * 8 / 3, rel=0.05)
    torch.testing.assert_close(net.blocks[0].ls1.gamma, torch.full((64,), 1e-5))
    again = build(m.encoder.name, kwargs=m.encoder.kwargs)
    again.load_state_dict(m.encoder.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.eval()(x), m.encoder.eval()(x))


def test_class_token_and_registers_start_near_zero_as_in_the_official_code():
    net = make(registers=4).student.backbone.net
    for token in (net.cls_token, net.reg_token):
        assert 0 < token.abs().max() < 1e-5
    assert net.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


def test_heads_are_untied_unless_asked():
    assert make().student.patch_head is not make().student.head
    tied = make(shared_head=True)
    assert tied.student.patch_head is tied.student.head


def test_teacher_starts_equal_and_gets_no_gradient():
    m = make()
    for a, b in zip(m.student.parameters(), m.teacher.parameters(), strict=True):
        assert torch.equal(a, b)
    m.step(batch(), CLOCK).loss.backward()
    assert all(p.grad is None for p in m.teacher.parameters())


def test_unknown_centring_and_other_backbones_are_refused():
    with pytest.raises(UsageError, match="sinkhorn"):
        make(centring="mean")
    with pytest.raises(UsageError, match="Use a ViT"):
        DINOv2(build("resnet_nano", image_size=32), DINOv2.Options())


def test_paper_recipe_has_the_papers_numbers():
    r = DINOv2.paper_recipe(RecipeContext(image_size=224, images=142_000_000, patch_size=14))
    o = r.options
    assert r.optim.lr == pytest.approx(2e-4 * 3**0.5)
    assert (r.optim.clip_by, r.optim.lr_patch) == ("module", 0.2)
    assert (o.prototypes, o.bottleneck, o.patch_bottleneck) == (131072, 384, 256)
    assert (o.local_size, o.koleo, o.teacher_momentum, o.drop_path) == (98, 0.1, 0.994, 0.4)


def test_a_stage_at_a_higher_resolution_takes_up_the_whole_run(tiny_run, tmp_path):
    from nolabel.engine.build import load_method

    first = tiny_run("dinov2", out="first", seed=1)
    last, run = load_method(tiny_run("dinov2", out="last", init=str(first.folder), image_size=48,
                                     steps=1, lr=0.0, seed=2).folder)  # fmt: skip
    before, _ = load_method(first.folder)
    assert run.settings.image_size == 48
    for part in ("backbone", "head", "patch_head"):
        a, b = (m.student.get_submodule(part).state_dict() for m in (before, last))
        for k in a:
            if k == "net.pos_embed":
                assert b[k].shape == (1, 1 + 144, 64)
            elif "running" not in k and "batches" not in k:
                torch.testing.assert_close(a[k], b[k])
    other = tiny_run("dinov2", out="other", init=str(first.folder), prototypes=48, steps=1)
    assert load_method(other.folder)[0].student.head.last_layer.weight_v.shape[0] == 48

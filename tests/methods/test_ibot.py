"""iBOT: official numbers, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.ibot import IBOT
from nolabel.nn import losses
from nolabel.nn.masked import PrototypeLogits, masked_cross_entropy
from nolabel.nn.schedules import momentum, per_epoch_linear
from nolabel.nn.state import Centre
from nolabel.types import Batch, Clock

ORACLE = Path(__file__).parents[1] / "oracles" / "ibot_loss.safetensors"
CLOCK = Clock(3, 10, 2)


def make(**changes):
    torch.manual_seed(0)
    net = build("vit_pico", image_size=32)
    IBOT.init(net)
    base = {"prototypes": 24, "patch_prototypes": 20, "hidden": 32, "bottleneck": 16,
            "drop_path": 0.0, "local_crops": 2, "local_size": 16, "shared_head": False,
            "mask_ratio": (0.3, 0.5)}  # fmt: skip
    return IBOT(net, IBOT.Options(**{**base, **changes}))


def batch(seed=0, b=4):
    g = torch.Generator().manual_seed(seed)
    large, small = (torch.randn(2, b, 3, s, s, generator=g) for s in (32, 16))
    return Batch(views={"global": large, "local": small})


def half_masked(b=4):
    masks = torch.zeros(2 * b, 64, dtype=torch.bool)
    masks[: 2 * b - 1, ::3] = True  # the last crop hides nothing
    return masks


def step(m, data, masks):
    """A step that hides just these patches."""
    m.draw_masks = lambda *_: masks
    return m.step(data, CLOCK)


class Logits(torch.nn.Module):
    """Stands for a last layer where the oracle already holds the logits."""

    def forward(self, x):
        return x


def test_losses_gradients_and_centres_match_the_official_numbers():
    o = load_file(ORACLE)
    centre, patch_centre = Centre(48), Centre(40)
    for epoch in (0, 4):
        e = {k.removeprefix(f"epoch{epoch}."): v for k, v in o.items() if f"epoch{epoch}." in k}
        clock = Clock(epoch, 10, 1)
        tau, patch_tau = (per_epoch_linear(0.04, end, 3, clock) for end in (0.07, 0.06))
        cls = e["student_cls"].requires_grad_()
        local = e["student_local_cls"].requires_grad_()
        patch = e["student_patch"].requires_grad_()
        t = e["teacher_cls"].unflatten(0, (2, 5))
        s = torch.cat([cls, local]).unflatten(0, (5, 5))
        targets = ((t - centre.value) / tau).softmax(-1)
        loss_cls = losses.cross_entropy_views(targets, s / 0.1)
        masks = e["masks"].flatten(0, 1).flatten(1).bool()
        shift = -patch_centre.value / patch_tau
        known = PrototypeLogits(e["teacher_patch"][masks], Logits(), patch_tau, shift=shift)
        student = PrototypeLogits(patch[masks], Logits(), 0.1)
        loss_patch = masked_cross_entropy(known, student, masks)
        torch.testing.assert_close(loss_cls, e["loss_cls"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss_patch, e["loss_patch"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss_cls + loss_patch, e["loss"], rtol=1e-5, atol=1e-6)
        (loss_cls + loss_patch).backward()
        for x, name in ((cls, "cls"), (local, "local"), (patch, "patch")):
            torch.testing.assert_close(x.grad, e[f"grad_{name}"], rtol=1e-4, atol=1e-7)
        centre.observe(t, epoch)
        patch_centre.observe(e["teacher_patch"].mean((0, 1), keepdim=True), epoch)
        centre.update()
        patch_centre.update()
        torch.testing.assert_close(centre.value, e["center_cls"])
        torch.testing.assert_close(patch_centre.value, e["center_patch"][0])


@pytest.mark.parametrize("shared", [True, False])
def test_step_equals_the_plain_computation_over_all_patches(shared):
    """All logits of all patches, and loops over images: what the page does in fewer pieces."""
    m = make(shared_head=shared, patch_prototypes=24).eval()
    m.patch_centre.value.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    data, masks = batch(), half_masked()
    crops = data.views["global"].flatten(0, 1)
    t, s = m.teacher.module, m.student
    seen = t.backbone.tokens(crops)
    hidden = s.backbone.tokens(crops, mask=masks, mask_token=m.mask_token)
    tau = m.temperature(m.options.patch_temperature, CLOCK)
    target = ((t.patch_head(seen.patches) - m.patch_centre.value) / tau).softmax(-1)
    token = -(target * (s.patch_head(hidden.patches) / 0.1).log_softmax(-1)).sum(-1)
    total = sum(float(token[i][masks[i]].mean()) if masks[i].any() else 0.0 for i in range(8))
    out = step(m, data, masks)
    assert float(out.logs["loss_patch"]) == pytest.approx(total / 8, rel=1e-5)
    assert out.loss.item() == pytest.approx(
        float(out.logs["loss_patch"] + out.logs["loss_class"]), rel=1e-5
    )
    before = m.patch_centre.value.clone()
    m.patch_centre.update()
    mean = t.patch_head(seen.patches).mean((0, 1))  # over all patches, hidden or not
    torch.testing.assert_close(
        m.patch_centre.value, before + 0.1 * (mean - before), atol=1e-6, rtol=0
    )


def test_rows_in_pieces_give_the_same_loss_and_gradients():
    grads = []
    for chunk in (0, 5):
        m = make(chunk=chunk)
        out = step(m, batch(), half_masked())
        out.loss.backward()
        grads.append((out.loss, {n: p.grad for n, p in m.named_parameters() if p.requires_grad}))
    (loss_a, a), (loss_b, b) = grads
    torch.testing.assert_close(loss_a, loss_b)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_hidden_patches_alone_count():
    m, data = make().eval(), batch()
    nothing = torch.zeros(8, 64, dtype=torch.bool)
    assert float(step(m, data, nothing).logs["loss_patch"]) == 0.0
    assert float(step(m, data, half_masked()).logs["loss_patch"]) > 0.0


def test_the_student_does_not_see_hidden_patches_and_the_teacher_does():
    m, data, masks = make().eval(), batch(), half_masked()
    crops = data.views["global"].flatten(0, 1)
    pixels = masks.view(8, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = crops + pixels * torch.randn_like(crops)
    s, t = m.student.backbone, m.teacher.module.backbone
    a, b = (s.tokens(x, mask=masks, mask_token=m.mask_token).pooled for x in (crops, other))
    torch.testing.assert_close(a, b)
    assert not torch.allclose(t.tokens(crops).pooled, t.tokens(other).pooled)


def test_local_crops_and_mask_token_reach_the_loss():
    m, data = make(), batch()
    local = data.views["local"].requires_grad_()
    step(m, data, half_masked()).loss.backward()
    assert local.grad.abs().sum() > 0
    assert m.mask_token.grad.abs().sum() > 0


def test_teacher_starts_equal_gets_no_gradient_and_moves_by_the_moving_average():
    m = make(teacher_momentum=0.9)
    pairs = list(zip(m.student.parameters(), m.teacher.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    m.step(batch(), CLOCK).loss.backward()
    assert all(p.grad is None for p in m.teacher.parameters())
    before = [p.clone() for p in m.teacher.parameters()]
    with torch.no_grad():
        for p in m.student.parameters():
            p.add_(1.0)
    m.after_update(CLOCK)
    for a, b in zip(before, m.teacher.parameters(), strict=True):
        torch.testing.assert_close(b, a + (1 - momentum(0.9, CLOCK)))


def test_a_shared_head_is_one_head_and_an_own_one_is_another():
    shared, own = make(shared_head=True), make()
    assert shared.student.patch_head is shared.student.head
    assert shared.teacher.module.patch_head is shared.teacher.module.head
    assert own.student.patch_head is not own.student.head


@pytest.mark.parametrize("shape", ["block", "random"])
def test_about_half_of_the_crops_are_masked_within_the_bounds(shape):
    m = make(mask_ratio=(0.1, 0.5), mask_shape=shape)
    torch.manual_seed(0)
    masks = m.draw_masks(400, (14, 14))
    share = masks.float().mean(1)
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share.max() <= 0.5
    if shape == "random":
        assert share[share > 0].min() > 0.09


def test_centres_survive_a_checkpoint():
    m, fresh = make(), make()
    m.step(batch(), CLOCK)
    m.after_update(CLOCK)
    fresh.load_state_dict(m.state_dict())
    for a, b in ((m.centre, fresh.centre), (m.patch_centre, fresh.patch_centre)):
        assert a.value.abs().sum() > 0 and torch.equal(a.value, b.value)


def test_prototypes_of_both_heads_are_frozen_in_the_first_epoch():
    m = make(freeze_last_layer=1)
    for step, frozen in ((1, True), (2, False)):
        clock = Clock(step, 10, 2)
        m.draw_masks = lambda *_: half_masked()
        m.step(batch(), clock).loss.backward()
        m.before_update(clock)
        for head in (m.student.head, m.student.patch_head):
            assert (head.last_layer.weight_v.grad is None) is frozen
        m.zero_grad()


def test_unknown_shapes_and_backbones_that_cannot_mask_are_refused():
    with pytest.raises(UsageError, match="random"):
        make(mask_shape="blocks")
    with pytest.raises(UsageError, match="mask token"):
        IBOT(build("resnet_nano", image_size=32), IBOT.Options())


def test_paper_recipe_has_the_papers_numbers():
    r = IBOT.paper_recipe(RecipeContext(image_size=224, images=1_281_167, patch_size=16))
    o = r.options
    assert (r.batch_size, r.optim.lr, r.optim.clip_by) == (1024, pytest.approx(2e-3), "tensor")
    assert (o.prototypes, o.shared_head, o.norm_last_layer) == (8192, True, False)
    assert (o.global_scale, o.local_scale, o.local_crops) == ((0.25, 1.0), (0.05, 0.25), 10)

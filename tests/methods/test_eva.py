"""EVA: the loss against a naive loop, and the properties that must not be lost."""

from __future__ import annotations

import pytest
import torch

from nolabel.backbones import build
from nolabel.backbones.init import init_like_beit
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.eva import EVA
from nolabel.nn.frozen import Frozen
from nolabel.nn.masks import block_masks
from nolabel.types import Batch, Clock

MEAN, STD = (0.5,) * 3, (0.25,) * 3
CLOCK = Clock(0, 10, 2)


def frozen(name="vit_pico", size=32, **kwargs):
    return Frozen(build(name, image_size=size, **kwargs), MEAN, STD, image_size=size)


def make(teacher=None, **changes):
    torch.manual_seed(0)
    net = build("vit_pico", image_size=32)
    EVA.init(net)
    options = EVA.Options(**{"smallest_block": 4, "drop_path": 0.0, **changes})
    return EVA(net, options, teacher=teacher or frozen("vit_nano"))


def images(seed=0, n=4):
    return torch.randn(1, n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def step(m, data, masks):
    """A step that hides just these patches."""
    m.draw_masks = lambda *_: masks
    return m.step(data, CLOCK)


def some_mask(n=4, seed=0):
    return torch.rand(n, 64, generator=torch.Generator().manual_seed(seed)) < 0.4


def test_loss_equals_the_naive_loop_over_hidden_patches():
    m = make().double()
    m.teacher.module.double()
    x, mask = images().double(), some_mask()
    loss = step(m, Batch(views={"image": x}), mask).loss
    f = m.teacher.module.tokens(x[0]).patches
    h = m.backbone.tokens(x[0], mask=mask, mask_token=m.mask_token).patches
    total, hidden = 0.0, 0
    for i, j in mask.nonzero().tolist():
        y = m.head.weight @ h[i, j] + m.head.bias
        total -= float(y @ f[i, j]) / (float(y.norm()) * float(f[i, j].norm()))
        hidden += 1
    assert loss.item() == pytest.approx(total / hidden, rel=1e-5)


def test_hidden_patches_alone_count():
    m = make()
    mask = some_mask()
    right = m.targets(images()[0])
    wrong = torch.where(mask[..., None], right, -right)  # absurd where nothing is hidden
    losses = []
    for f in (right, wrong):
        m.targets = lambda x, f=f: f
        losses.append(step(m, Batch(views={"image": images()}), mask).loss)
    assert torch.equal(*losses)


def test_student_sees_nothing_under_the_mask_and_the_teacher_everything():
    m = make()
    mask = some_mask()
    pixels = mask.view(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    x = images()
    other = torch.where(pixels, torch.randn_like(x), x)
    seen = m.targets(x[0])
    assert not torch.allclose(seen, m.targets(other[0]))
    m.targets = lambda x: seen
    a, b = (step(m, Batch(views={"image": v}), mask).loss for v in (x, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("teacher", "side"),
    [
        (lambda: frozen("vit_pico", 64, patch_size=8), 64),
        (lambda: frozen("resnet_nano", 32), 64),
        (lambda: frozen("pixels", 32), 8),
    ],
)  # fmt: skip
def test_the_teachers_image_is_resized_until_the_grids_agree(teacher, side):
    teacher = teacher()
    m = make(teacher)
    seen, tokens = [], teacher.module.tokens
    teacher.module.tokens = lambda x: (seen.append(x.shape), tokens(x))[1]
    f = m.targets(images()[0])
    assert f.shape[:2] == (4, 64) and seen == [(4, 3, side, side)]
    torch.testing.assert_close(f.norm(dim=-1), torch.ones(4, 64))
    assert torch.isfinite(m.step(Batch(views={"image": images()}), CLOCK).loss)


def test_a_teacher_whose_grid_cannot_agree_is_refused_at_once():
    teacher = frozen("resnet_nano", 32)
    teacher.module.patch_size = 16  # not what its maps have
    with pytest.raises(UsageError, match=r"grid of 16 x 16 and the student's one of 8 x 8"):
        make(teacher)


def test_about_two_fifths_are_hidden_in_blocks():
    masks = block_masks([round(EVA.Options().mask_ratio * 256)] * 50, (16, 16))
    assert masks.sum(1).max() == 105 and masks.sum(1).float().mean() > 100
    m = make(mask_ratio=0.41)
    shares = [m.step(Batch(views={"image": images(i)}), CLOCK).logs["hidden"] for i in range(4)]
    assert 0.3 < torch.stack(shares).mean() <= 26 / 64


def test_teacher_gets_no_gradient_and_the_student_all():
    m = make().train()
    m.step(Batch(views={"image": images()}), CLOCK).loss.backward()
    assert all(p.grad is not None for p in m.parameters())
    assert all(p.grad is None for p in m.teacher.module.parameters())
    assert not any("teacher" in n for n in m.state_dict())


def test_a_batch_without_hidden_patches_costs_nothing_and_stays_finite():
    m = make()
    mask = torch.zeros(4, 64, dtype=torch.bool)
    assert step(m, Batch(views={"image": images()}), mask).loss == 0


@pytest.mark.parametrize("changes", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}])
def test_impossible_mask_ratios_are_refused(changes):
    with pytest.raises(UsageError, match="between 0 and 1"):
        make(**changes)


def test_blocks_larger_than_what_is_hidden_are_refused_with_a_size_that_works():
    with pytest.raises(UsageError, match="--smallest-block 5"):
        make(smallest_block=27)


def test_resnet_is_refused_as_a_student():
    with pytest.raises(UsageError, match="Use a ViT"):
        EVA(build("resnet18", image_size=32), EVA.Options(), teacher=frozen())


def test_paper_recipe_has_the_papers_numbers():
    r = EVA.paper_recipe(RecipeContext(image_size=224, images=1_281_167, patch_size=14))
    o = r.optim
    assert (o.lr, o.beta1, o.beta2, o.eps, o.weight_decay) == (1e-3, 0.9, 0.98, 1e-6, 0.05)
    assert (r.batch_size, r.epochs, o.warmup_epochs, r.options.drop_path) == (4096, 150, 2, 0.1)


def test_fresh_weights_shrink_with_depth():
    """attn.proj and fc2 of block l are divided by sqrt(2 l); the rest has deviation 0.02."""
    torch.manual_seed(0)
    net = build("vit_micro", image_size=32)
    init_like_beit(net.net)
    for layer, block in enumerate(net.net.blocks, 1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.02 / (2 * layer) ** 0.5, rel=0.05)
        for weight in (block.attn.qkv.weight, block.mlp.fc1.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not block.attn.qkv.bias.any() and not block.mlp.fc2.bias.any()


def test_a_teacher_with_texts_is_predicted_in_the_space_that_it_shares_with_them():
    projection = torch.nn.Linear(64, 24, bias=False)
    with_texts = Frozen(
        build("vit_pico", image_size=32), MEAN, STD, image_size=32, projection=projection
    )
    m, x = make(with_texts), images()[0]
    after_norm = with_texts.module.tokens(x).patches
    want = torch.nn.functional.normalize(after_norm @ projection.weight.T, dim=-1)
    assert torch.allclose(m.targets(x), want, atol=1e-6)
    assert m.head.out_features == 24 and not projection.weight.requires_grad

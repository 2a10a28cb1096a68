"""BEiT: the loss against a naive loop, and the properties that must not be lost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nolabel.backbones import build
from nolabel.encoders import load_encoder_file, save_encoder
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.beit import BEiT
from nolabel.nn.frozen import Frozen
from nolabel.nn.masks import block_masks
from nolabel.testing import Colours
from nolabel.types import Batch, Clock

MEAN, STD = (0.5,) * 3, (0.25,) * 3
CLOCK = Clock(0, 10, 2)


def make(tokenizer=None, **changes):
    torch.manual_seed(0)
    net = build("vit_pico", image_size=32)
    BEiT.init(net)
    options = BEiT.Options(**{"smallest_block": 4, "drop_path": 0.0, **changes})
    return BEiT(net, options, tokenizer=Frozen(tokenizer or Colours(), MEAN, STD))


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
    x, mask = images().double(), some_mask()
    out = step(m, Batch(views={"image": x}), mask)
    small = nn.functional.interpolate(x[0].float(), (16, 16), mode="bicubic", antialias=True)
    ids = Colours().tokens(small)
    h = m.backbone.tokens(x[0], mask=mask, mask_token=m.mask_token).patches
    total, right, hidden = 0.0, 0, mask.nonzero().tolist()
    for i, j in hidden:
        scores = (m.head.weight @ h[i, j] + m.head.bias).tolist()
        total += math.log(sum(math.exp(s) for s in scores)) - scores[int(ids[i, j])]
        right += int(max(range(8), key=lambda k: scores[k]) == int(ids[i, j]))
    assert out.loss.item() == pytest.approx(total / len(hidden), rel=1e-5)
    assert float(out.logs["token_accuracy"]) == pytest.approx(right / len(hidden))


def test_a_fresh_network_guesses_about_evenly():
    loss = make().step(Batch(views={"image": images(n=16)}), CLOCK).loss
    assert loss.item() == pytest.approx(math.log(8), rel=0.05)


def test_hidden_patches_alone_count():
    m = make()
    mask = some_mask()
    right = m.targets(images()[0])
    wrong = torch.where(mask, right, (right + 1) % 8)
    losses = []
    for ids in (right, wrong):
        m.targets = lambda x, ids=ids: ids
        losses.append(step(m, Batch(views={"image": images()}), mask).loss)
    assert torch.equal(*losses)


def test_encoder_sees_nothing_under_the_mask_and_the_tokenizer_everything():
    m = make()
    mask = some_mask()
    pixels = mask.view(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    x = images()
    other = torch.where(pixels, -x, x)
    seen = m.targets(x[0])
    assert not torch.equal(seen, m.targets(other[0]))
    m.targets = lambda x: seen
    a, b = (step(m, Batch(views={"image": v}), mask).loss for v in (x, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_the_tokenizers_image_is_resized_until_the_grids_agree(patch):
    tokenizer = Colours(patch)
    seen, tokens = [], tokenizer.tokens
    tokenizer.tokens = lambda x: (seen.append(x.shape), tokens(x))[1]
    ids = make(tokenizer).targets(images()[0])
    assert seen[-1] == (4, 3, 8 * patch, 8 * patch)
    assert ids.shape == (4, 64) and ids.dtype == torch.int64


def test_a_tokenizer_of_another_number_of_tokens_is_refused_at_once():
    tokenizer = Colours(4)
    tokenizer.tokens = lambda x: torch.zeros(len(x), 60, dtype=torch.int64)
    with pytest.raises(UsageError, match="60 tokens an image.*8 x 8 patches"):
        make(tokenizer)


def test_ids_do_not_depend_on_the_precision_of_training():
    class Linear(Colours):
        """Ids by a matrix product, which autocast would round."""

        def __init__(self):
            super().__init__(4)
            self.codes = nn.Linear(3, 64)

        vocabulary = 64

        def tokens(self, x):
            means = nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            return self.codes(means).argmax(-1)

    m = make(Linear())
    x = images(n=64)[0]
    exact = m.targets(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(m.tokenizer.module.tokens(x), exact)  # so it would matter
        assert torch.equal(m.targets(x), exact)


def test_about_two_fifths_are_hidden_in_blocks():
    masks = block_masks([round(BEiT.Options().mask_ratio * 196)] * 50, (14, 14))
    assert masks.sum(1).max() == 75 and masks.sum(1).float().mean() > 70


def test_tokenizer_gets_no_gradient_and_the_encoder_all():
    m = make(Colours()).train()
    m.step(Batch(views={"image": images()}), CLOCK).loss.backward()
    assert all(p.grad is not None for p in m.parameters())
    assert not any("teacher" in n for n in m.state_dict())


def test_a_batch_without_hidden_patches_costs_nothing():
    m = make()
    loss = step(m, Batch(views={"image": images()}), some_mask() & False).loss
    assert loss == 0
    loss.backward()


def test_factors_of_the_blocks_start_as_told_and_travel_with_the_encoder(tmp_path):
    m = make(layer_scale=0.1)
    blocks = m.encoder.net.blocks
    assert all((b.ls1.gamma == 0.1).all() and (b.ls2.gamma == 0.1).all() for b in blocks)
    blocks[1].ls2.gamma.data.fill_(0.7)
    file = save_encoder(
        tmp_path / "e.safetensors", m.encoder, branch="encoder", method="beit", mean=MEAN,
        std=STD, image_size=32, run=None,
    )  # fmt: skip
    again = load_encoder_file(file).backbone
    x = images()[0]
    with torch.no_grad():
        assert torch.equal(again.eval()(x), m.encoder.eval()(x))
    plain = make(layer_scale=0.0).encoder
    assert isinstance(plain.net.blocks[0].ls1, nn.Identity) and "init_values" not in plain.kwargs


def test_factors_that_a_network_has_are_kept():
    net = build("vit_pico", image_size=32, kwargs={"init_values": 0.5})
    m = BEiT(net, BEiT.Options(smallest_block=4), tokenizer=Frozen(Colours(), MEAN, STD))
    assert (m.encoder.net.blocks[0].ls1.gamma == 0.5).all()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_impossible_mask_ratios_are_refused(ratio):
    with pytest.raises(UsageError, match="between 0 and 1"):
        make(mask_ratio=ratio)


def test_blocks_larger_than_what_is_hidden_are_refused_with_a_size_that_works():
    with pytest.raises(UsageError, match="--smallest-block 4"):
        make(smallest_block=25)


def test_resnet_is_refused():
    with pytest.raises(UsageError, match="Use a ViT"):
        BEiT(
            build("resnet18", image_size=32), BEiT.Options(), tokenizer=Frozen(Colours(), MEAN, STD)
        )


def test_paper_recipe_has_the_papers_numbers():
    r = BEiT.paper_recipe(RecipeContext(image_size=224, images=1_281_167, patch_size=16))
    o = r.optim
    assert (o.lr, o.beta2, o.weight_decay, o.clip, o.lr_end) == (1.5e-3, 0.999, 0.05, 3.0, 1e-5)
    assert (r.batch_size, r.epochs, o.warmup_epochs) == (2048, 800, 10)
    view = BEiT.views(r.options, 224).views[0]
    assert (view.jitter, view.jitter_p, view.scale) == ((0.4, 0.4, 0.4, 0.0), 1.0, (0.08, 1.0))

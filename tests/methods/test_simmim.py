"""SimMIM: official numbers, and the properties that must not be lost."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nolabel as nl
from nolabel import recipes
from nolabel.backbones import build
from nolabel.backbones.init import sincos_positions
from nolabel.data.open import open_source
from nolabel.engine.build import load_method
from nolabel.engine.optimiser import build_optimiser
from nolabel.engine.step import apply_update
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.simmim import SimMIM
from nolabel.nn.masks import mask_noise
from nolabel.types import Batch, Clock, Optim

ORACLE = Path(__file__).parents[1] / "oracles" / "simmim_swin.safetensors"
CLOCK = Clock(0, 10, 2)
BACKBONES = ("vit_pico", "swin_nano")


def make(backbone="swin_nano", **changes):
    torch.manual_seed(0)
    return SimMIM(build(backbone, image_size=32), SimMIM.Options(**{"unit": 8, **changes}))


def official():
    """The network of the official numbers, its official names turned into timm's."""
    backbone = build(
        "swin_tiny_patch4_window7_224",
        image_size=32,
        patch_size=2,
        kwargs={"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
                "mlp_ratio": 2},
    )  # fmt: skip
    m = SimMIM(backbone, SimMIM.Options(unit=8))
    o = load_file(ORACLE)
    state = {}
    for key, value in o.items():
        if not key.startswith("w.") or key.endswith(("relative_position_index", "attn_mask")):
            continue
        name = key[2:].replace("encoder.mask_token", "mask_token")
        name = name.replace("encoder.", "backbone.net.").replace("decoder.0.", "decoder.")
        # timm's stage starts with the merging that ends the official stage before it.
        name = name.replace("layers.0.downsample", "layers.1.downsample")
        state[name] = value.flatten() if name == "mask_token" else value
    m.load_state_dict(state)
    return m, o


def step(m, data, masks):
    """A step that hides just these patches."""
    m.draw_masks = lambda *_: masks
    return m.step(data, CLOCK)


def masks(m, x, ratio):
    """Masks of random units."""
    return m.masks(x, ratio, mask_noise(len(x), (x.shape[-1] // m.options.unit) ** 2))


def naive(x, pred, mask, patch):
    """The loss in the words of the paper, pixel by pixel."""
    total, count = 0.0, 0
    n, channels, height, width = x.shape
    for i in range(n):
        for r in range(height):
            for c in range(width):
                if mask[i, r // patch, c // patch]:
                    count += 1
                    total += float((x[i, :, r, c] - pred[i, :, r, c]).abs().sum())
    return total / (count + 1e-5) / channels


def test_loss_and_gradient_match_the_official_numbers():
    m, o = official()
    batch = Batch(views={"image": o["x"][None]})
    out = step(m, batch, o["mask"].bool().flatten(1))
    torch.testing.assert_close(out.loss, o["loss"], rtol=1e-5, atol=0)
    out.loss.backward()
    expected = o["grad_mask_token"].flatten()
    torch.testing.assert_close(m.mask_token.grad, expected, rtol=1e-4, atol=1e-8)


def test_loss_equals_the_naive_sum_over_hidden_pixels():
    m, o = official()
    x, mask = o["x"].double(), o["mask"].bool()
    m.double()
    pred = m.predict(x, mask.flatten(1))[0].detach()
    loss = step(m, Batch(views={"image": x[None]}), mask.flatten(1)).loss
    assert loss.item() == pytest.approx(naive(x, pred, mask, 2), rel=1e-5)
    assert loss.item() == pytest.approx(float(o["loss"]), rel=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_visible_pixels_do_not_count_and_every_hidden_one_does(name):
    m = make(name)
    x = torch.randn(2, 3, 32, 32)
    mask = masks(m, x, 0.6)
    p = m.backbone.mask_patch
    hidden = mask.unflatten(1, (32 // p, 32 // p)).unsqueeze(1)
    hidden = hidden.repeat_interleave(p, 2).repeat_interleave(p, 3).expand_as(x)
    m.predict = lambda *_: (pred, torch.zeros(2, 1))
    batch = Batch(views={"image": x[None]})
    pred = torch.where(hidden, x, x + 100.0)  # visible pixels predicted absurdly
    assert step(m, batch, mask).loss.item() == 0.0
    pred = torch.where(hidden, x + 0.5, x)
    assert step(m, batch, mask).loss.item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_network_sees_no_hidden_pixel(name):
    m = make(name).eval()
    x = torch.randn(2, 3, 32, 32)
    mask = masks(m, x, 0.6)
    p = m.backbone.mask_patch
    hidden = mask.unflatten(1, (32 // p, 32 // p)).unsqueeze(1)
    hidden = hidden.repeat_interleave(p, 2).repeat_interleave(p, 3)
    other = torch.where(hidden, torch.randn_like(x), x)
    assert torch.equal(m.predict(x, mask)[0], m.predict(other, mask)[0])
    assert not torch.equal(m.predict(x, mask)[0], m.predict(-x, mask)[0])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.6, 0.9])
def test_whole_units_are_hidden_exactly_the_count_rounded_up(ratio):
    m = make(unit=8)
    mask = masks(m, torch.zeros(5, 3, 32, 32), ratio).view(
        5, 4, 4, 4, 4
    )  # rows, in it, columns, ..
    units = mask.float().mean((2, 4))
    assert set(units.unique().tolist()) == {0.0, 1.0}
    assert (units.sum((1, 2)) == math.ceil(16 * ratio)).all()


def test_masks_differ_between_images_and_steps_and_repeat_with_the_seed():
    m, x = make(), torch.zeros(8, 3, 32, 32)
    torch.manual_seed(1)
    a, b = masks(m, x, 0.5), masks(m, x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(masks(m, x, 0.5), a)
    assert not torch.equal(a, b)
    assert len({tuple(row.tolist()) for row in a}) > 1


@pytest.mark.parametrize("name", BACKBONES)
def test_pixels_are_predicted_where_they_are(name):
    """A decoder that copies one feature writes each token's value into its own square."""
    m = make(name).eval()
    torch.nn.init.zeros_(m.decoder.weight)
    torch.nn.init.zeros_(m.decoder.bias)
    m.decoder.weight.data[:, 0] = 1.0
    x = torch.randn(1, 3, 32, 32)
    mask = masks(m, x, 0.5)
    seen = m.backbone.tokens(x, mask=mask, mask_token=m.mask_token)
    pred, _ = m.predict(x, mask)
    p = m.backbone.patch_size
    squares = seen.patches[..., 0].unflatten(1, seen.grid)
    assert torch.allclose(pred[0, 1], squares[0].repeat_interleave(p, 0).repeat_interleave(p, 1))


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_impossible_mask_ratios_are_refused(ratio):
    with pytest.raises(UsageError, match="between 0 and 1"):
        make(mask_ratio=ratio)


@pytest.mark.parametrize(("name", "unit", "fit"), [
    ("vit_pico", 12, "4, 8, 16"), ("vit_pico", 2, "4, 8, 16"), ("swin_nano", 3, "2, 4, 8, 16"),
    ("swin_nano", 64, "2, 4, 8, 16"), ("swin_nano", 32, "2, 4, 8, 16"),
])  # fmt: skip
def test_units_that_do_not_divide_are_refused_with_those_that_do(name, unit, fit):
    with pytest.raises(UsageError, match=f"unit is {unit} px.*Use {fit}"):
        make(name, unit=unit)


def test_a_unit_may_be_smaller_than_a_token_of_swin():
    m = make(unit=4)
    assert masks(m, torch.zeros(1, 3, 32, 32), 0.5).sum() == 32 * 4
    assert m.step(Batch(views={"image": torch.randn(1, 2, 3, 32, 32)}), CLOCK).loss.isfinite()


def test_resnet_is_refused_with_a_hint():
    with pytest.raises(UsageError, match="Use a ViT or Swin"):
        SimMIM(build("resnet18", image_size=32), SimMIM.Options(unit=8))


def test_mask_token_and_tables_of_relative_positions_do_not_decay():
    m = make()
    still = [g for g in build_optimiser(m, Optim()).param_groups if not g["decay"]]
    ids = {id(p) for g in still for p in g["params"]}
    tables = [p for n, p in m.named_parameters() if n.endswith("relative_position_bias_table")]
    assert len(tables) == 6
    assert all(id(p) in ids for p in [m.mask_token, *tables])
    assert id(m.decoder.weight) not in ids


@pytest.mark.parametrize("name", BACKBONES)
def test_reconstruction_has_the_shapes_for_pictures(name):
    m = make(name).eval()
    x = torch.randn(2, 3, 32, 32)
    pred, hidden = m.inpaint(x, 0.6, torch.Generator().manual_seed(0))
    assert pred.shape == x.shape and hidden.dtype == torch.bool
    assert hidden.shape == (2, 4, 4) and (hidden.sum((1, 2)) == 10).all()
    again = m.inpaint(x, 0.6, torch.Generator().manual_seed(0))
    assert torch.equal(pred, again[0]) and torch.equal(hidden, again[1])


def test_paper_recipe_has_the_papers_numbers():
    r = SimMIM.paper_recipe(RecipeContext(image_size=192, images=1_281_167))
    assert (r.options.unit, r.options.mask_ratio, r.options.scale) == (32, 0.6, (0.67, 1.0))
    assert (r.batch_size, r.epochs, r.optim.lr) == (2048, 100, pytest.approx(8e-4))
    assert (r.optim.weight_decay, r.optim.beta2, r.optim.clip) == (0.05, 0.999, 5.0)


@pytest.mark.parametrize(("size", "patch", "unit"), [
    (224, 16, 32), (192, 16, 32), (224, 32, 32), (32, 4, 8), (32, 8, 8), (96, 12, 24), (64, 8, 16),
    (48, 6, 12), (32, 32, 32),
])  # fmt: skip
def test_the_automatic_unit_is_a_share_of_the_image_in_whole_patches(size, patch, unit):
    context = RecipeContext(image_size=size, images=1000, patch_size=patch)
    assert recipes.automatic(SimMIM, context).options.unit == unit


def trace(name):
    """Losses of five steps from fixed weights, images and masks."""
    m = make(name)
    SimMIM.init(m.backbone)
    torch.manual_seed(1)
    x = torch.randn(5, 1, 4, 3, 32, 32)
    optimiser = torch.optim.AdamW(m.parameters(), lr=1e-3)
    losses = []
    for step in range(5):
        clock = Clock(step, 5, 1)
        loss = m.step(Batch(views={"image": x[step]}), clock).loss
        loss.backward()
        apply_update(m, optimiser, Optim(), clock)
        losses.append(loss.item())
    return losses


def test_golden_trace_of_a_swin():
    """A ViT's is with the other methods'."""
    golden = [0.9159241, 0.8863263, 0.8551536, 0.8304759, 0.8309515]
    assert trace("swin_nano") == pytest.approx(golden, rel=1e-4)


def test_positions_start_as_sines_and_train():
    m = make("vit_pico")
    SimMIM.init(m.backbone)
    assert torch.equal(m.backbone.net.pos_embed, sincos_positions(64, 8))
    assert m.backbone.net.pos_embed.requires_grad


@pytest.mark.long
def test_learns_to_paint_what_is_hidden_better_than_in_the_mean_colour(tmp_path):
    """Features that k-NN prefers to random ones take longer than a minute, and so does a Swin."""
    run = nl.pretrain(
        "simmim", data="creatures", out=tmp_path / "run", backbone="vit_pico", steps=150,
        precision="fp32", quiet=True, checkpoint_every=100_000,
    )  # fmt: skip
    source = open_source("creatures:test", image_size=32)
    x = run.encoder.prepare([source.read(i).image for i in range(128)])
    method, _ = load_method(str(run.folder))
    pred, hidden = method.eval().inpaint(x, 0.6, torch.Generator().manual_seed(0))
    unit = run.options.unit
    hidden = hidden.repeat_interleave(unit, 1).repeat_interleave(unit, 2).unsqueeze(1)
    colour = (x * ~hidden).sum((2, 3), keepdim=True) / (~hidden).sum((2, 3), keepdim=True)
    ours, trivial = (((x - y).abs() * hidden).sum().item() for y in (pred, colour))
    assert ours < 0.9 * trivial, ours / trivial

"""MAE: official numbers, and the properties that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.backbones.init import sincos_positions
from nolabel.errors import UsageError
from nolabel.methods.mae import MAE
from nolabel.nn.patches import keep_by_noise, patchify, unpatchify
from nolabel.types import Batch, Clock

ORACLE = Path(__file__).parents[1] / "oracles" / "mae.safetensors"
CLOCK = Clock(0, 10, 2)


def make(**changes):
    backbone = build(
        "vit_tiny_patch16_224",
        image_size=32,
        patch_size=8,
        kwargs={"embed_dim": 48, "depth": 3, "num_heads": 3},
    )
    MAE.init(backbone)
    base = {"decoder_dim": 32, "decoder_depth": 2, "decoder_heads": 4}
    return MAE(backbone, MAE.Options(**{**base, **changes}))


@pytest.mark.parametrize("norm", [0, 1])
def test_loss_prediction_mask_and_gradients_match_the_official_numbers(norm, monkeypatch):
    o = load_file(ORACLE)
    monkeypatch.setattr("nolabel.methods.mae.mask_noise", lambda *_: o["noise"])
    m = make(norm_pix=bool(norm))
    decoder = ("decoder", "mask_token")
    state = {
        (k[2:] if k[2:].startswith(decoder) else "backbone.net." + k[2:]): v
        for k, v in o.items()
        if k.startswith("w.")
    }
    m.load_state_dict(state)
    out = m.step(Batch(views={"image": o["x"][None]}), CLOCK)
    torch.testing.assert_close(out.loss, o[f"norm{norm}.loss"], rtol=1e-5, atol=1e-6)
    pred, mask, _ = m.predict(o["x"], o["noise"], 0.75)
    torch.testing.assert_close(pred, o[f"norm{norm}.pred"], rtol=1e-4, atol=1e-5)
    assert torch.equal(mask, o[f"norm{norm}.mask"])
    out.loss.backward()
    torch.testing.assert_close(
        m.mask_token.grad, o[f"norm{norm}.grad_mask_token"], rtol=1e-3, atol=1e-6
    )
    qkv = m.backbone.net.blocks[0].attn.qkv.weight.grad
    torch.testing.assert_close(qkv, o[f"norm{norm}.grad_qkv0"], rtol=1e-3, atol=1e-6)


def test_fixed_positions_match_the_official_table():
    o = load_file(ORACLE)
    torch.testing.assert_close(sincos_positions(48, 4), o["w.pos_embed"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        sincos_positions(32, 4), o["w.decoder_pos_embed"], rtol=1e-5, atol=1e-6
    )


def test_masked_patches_alone_count():
    m = make()
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 32, 32)
    _, _, mask = keep_by_noise(noise, 0.75)
    target = patchify(x, 8)
    pred = m.predict(x, noise, 0.75)[0]
    changed = pred + (1 - mask)[..., None] * 100.0  # visible patches predicted absurdly
    from nolabel.nn.masked import masked_mse

    assert torch.equal(masked_mse(pred, target, mask), masked_mse(changed, target, mask))


def test_encoder_sees_the_visible_patches_alone():
    m = make()
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 3, 32, 32)
    keep, _, mask = keep_by_noise(noise, 0.75)
    hidden = unpatchify(mask[..., None].expand(-1, -1, 192), 8, (4, 4))
    other = x + hidden * torch.randn_like(x)  # another picture under the mask
    a, b = m.backbone.tokens(x, keep=keep), m.backbone.tokens(other, keep=keep)
    assert a.patches.shape == (1, 4, 48)
    assert torch.equal(a.patches, b.patches)
    assert torch.equal(m.predict(x, noise, 0.75)[0], m.predict(other, noise, 0.75)[0])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9, 0.99])
def test_any_mask_ratio_gives_exact_counts_and_restores_the_order(ratio):
    noise = torch.rand(3, 64)
    keep, restore, mask = keep_by_noise(noise, ratio)
    kept = max(int(64 * (1 - ratio)), 1)
    assert keep.shape == (3, kept)
    assert (mask.sum(1) == 64 - kept).all()
    shuffle = noise.argsort(1)
    assert torch.equal(shuffle.gather(1, restore), torch.arange(64).expand(3, -1))
    assert (mask.gather(1, keep) == 0).all()


def test_a_constant_image_with_normalised_targets_is_finite():
    m = make(norm_pix=True)
    out = m.step(Batch(views={"image": torch.full((1, 2, 3, 32, 32), 0.3)}), CLOCK)
    assert torch.isfinite(out.loss)


def test_patchify_and_back_is_the_identity():
    x = torch.randn(2, 3, 32, 48)
    assert torch.equal(unpatchify(patchify(x, 8), 8, (4, 6)), x)


def test_positions_are_fixed():
    m = make()
    assert not m.backbone.net.pos_embed.requires_grad
    assert "decoder_pos_embed" in dict(m.named_buffers())


def test_resnet_is_refused_with_a_hint():
    with pytest.raises(UsageError, match="Use a ViT"):
        MAE(build("resnet18", image_size=32), MAE.Options())


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_impossible_mask_ratios_are_refused(ratio):
    with pytest.raises(UsageError, match="between 0 and 1"):
        make(mask_ratio=ratio)


def test_reconstruction_draws_the_removed_patches_with_the_true_statistics():
    m = make(norm_pix=True).eval()
    x = torch.randn(2, 3, 32, 32)
    pred, mask = m.inpaint(x, 0.75, torch.Generator().manual_seed(0))
    assert pred.shape == x.shape
    assert mask.shape == (2, 4, 4)
    assert mask.sum() == 24

"""Swin: timm's numbers where timm is right, a naive reference everywhere, masks and sizes."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import nolabel as nl
from nolabel import backbones
from nolabel.backbones import PRESETS, build, stride_of
from nolabel.backbones.swin import windows_of
from nolabel.config import Request
from nolabel.encoders import Encoder, load
from nolabel.engine.optimiser import build_optimiser
from nolabel.engine.resolve import resolve
from nolabel.errors import UsageError
from nolabel.types import Optim


def swin(size=32, name="swin_nano", **changes):
    """A Swin whose biases of relative positions are large enough to matter."""
    torch.manual_seed(0)
    backbone = build(name, image_size=size, **changes).eval()
    for key, p in backbone.named_parameters():
        if key.endswith("relative_position_bias_table"):
            nn.init.normal_(p)
    return backbone


def plain(backbone, size):
    """timm's own network of that size with the same weights; a window that the map does not fill
    is smaller there, and its table of biases the middle of ours."""
    kwargs = {**backbone.kwargs, "img_size": size}
    net = timm.create_model(backbone.name, num_classes=0, **kwargs).double().eval()
    state = backbone.net.state_dict()
    for key, value in net.state_dict().items():
        if state[key].shape != value.shape:
            mine, his = (int(len(t) ** 0.5) for t in (state[key], value))
            cut = slice((mine - his) // 2, (mine + his) // 2)
            state[key] = state[key].view(mine, mine, -1)[cut, cut].flatten(0, 1)
    net.load_state_dict(state)
    return net


def naive(net, x):
    """Attention among all places of the map, each pair allowed or not by the rule of the paper."""
    x = net.patch_embed.norm(net.patch_embed.proj(x).permute(0, 2, 3, 1))
    for stage in net.layers:
        x = stage.downsample(x)
        n, height, width, d = x.shape
        row = torch.arange(height).repeat_interleave(width)
        column = torch.arange(width).repeat(height)
        for i, block in enumerate(stage.blocks):
            a, window = block.attn, block.attn.window_size[0]
            near = torch.ones(height * width, height * width, dtype=torch.bool)
            for place, size in ((row, height), (column, width)):
                # A map no larger than a window is one window and is not shifted.
                shift = window // 2 if i % 2 and size > window else 0
                number = (place - shift) // window
                near &= number[:, None] == number[None]
            down, right = row[:, None] - row, column[:, None] - column
            index = (down + window - 1) * (2 * window - 1) + right + window - 1
            bias = a.relative_position_bias_table[index.clamp(0, (2 * window - 1) ** 2 - 1)]
            y = block.norm1(x.flatten(1, 2))
            q, k, v = a.qkv(y).view(n, len(row), 3, a.num_heads, -1).permute(2, 0, 3, 1, 4)
            logits = q @ k.mT * q.shape[-1] ** -0.5 + bias.permute(2, 0, 1)
            weights = logits.masked_fill(~near, float("-inf")).softmax(-1)
            y = a.proj((weights @ v).transpose(1, 2).flatten(2)).view(x.shape)
            x = x + y
            x = x + block.mlp(block.norm2(x))
    return net.norm(x)


@pytest.mark.parametrize(("built", "used"), [
    (32, 32), (32, 16), (32, 8), (32, 64), (64, 32), (96, 24),  # windows fill every map
    (32, 40), (32, 24), (32, 56), (48, 40), (64, 104),  # the last windows stick out
])  # fmt: skip
def test_every_place_attends_to_its_window_alone_at_any_size(built, used):
    backbone = swin(built).double()
    x = torch.randn(2, 3, used, used, dtype=torch.float64)
    with torch.no_grad():
        got, expected = backbone.tokens(x), naive(backbone.net, x)
    torch.testing.assert_close(got.patches, expected.flatten(1, 2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.pooled, expected.mean((1, 2)), rtol=1e-9, atol=1e-9)
    assert got.grid == (used // 8, used // 8)


def test_images_need_not_be_square():
    backbone = swin().double()
    x = torch.randn(1, 3, 24, 72, dtype=torch.float64)
    with torch.no_grad():
        got, expected = backbone.tokens(x), naive(backbone.net, x)
    assert got.grid == (3, 9)
    torch.testing.assert_close(got.patches, expected.flatten(1, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("built", "used"), [(32, 32), (32, 16), (32, 8), (32, 64), (64, 32)])
def test_where_windows_fill_the_map_the_numbers_are_those_of_a_fresh_network_of_timm(built, used):
    backbone = swin(built).double()
    x = torch.randn(2, 3, used, used, dtype=torch.float64)
    with torch.no_grad():
        net = plain(backbone, used)
        torch.testing.assert_close(backbone(x), net(x), rtol=1e-9, atol=1e-9)
        maps = net.forward_features(x).flatten(1, 2)
        torch.testing.assert_close(backbone.tokens(x).patches, maps, rtol=1e-9, atol=1e-9)


def test_a_published_architecture_gives_timms_numbers():
    backbone = swin(224, "swin_s3_tiny_224")  # windows differ from stage to stage
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(backbone(x), backbone.net(x), atol=1e-5)
    assert (backbone.patch_size, backbone.mask_patch, backbone.mask_dim) == (32, 4, 96)


def test_gradients_are_those_of_timm():
    backbone = swin().double()
    net, x = plain(backbone, 32), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    backbone(x).square().sum().backward()
    net(x).square().sum().backward()
    for (name, p), (other, q) in zip(
        backbone.net.named_parameters(), net.named_parameters(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9)


def test_the_two_ends_of_a_map_never_meet_and_padding_belongs_to_no_window():
    device = torch.device("cpu")
    assert windows_of(8, 4, 0, device).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert windows_of(8, 4, 2, device).tolist() == [0, 0, 0, 0, 1, 1, -1, -1]
    # Places 2 3 4, then three of padding, then 0 1, which the shift has carried to the end.
    assert windows_of(5, 4, 2, device).tolist() == [0, 0, 0, -2, -2, -2, -1, -1]


def test_a_mask_hides_its_patches_and_leaves_the_others():
    backbone = swin().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    token = torch.randn(32, dtype=torch.float64)
    mask = torch.rand(2, 256) < 0.5
    hidden = mask.view(2, 1, 16, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = torch.where(hidden, torch.randn_like(x), x)
    with torch.no_grad():
        a, b = (backbone.tokens(y, mask=mask, mask_token=token).patches for y in (x, other))
        assert torch.equal(a, b)
        none = torch.zeros_like(mask)
        seen = backbone.tokens(x, mask=none, mask_token=token).patches
        assert torch.equal(seen, backbone.tokens(x).patches)
        assert not torch.allclose(a, seen)
    with pytest.raises(UsageError, match="mask_token"):
        backbone.tokens(x, mask=mask)


def test_a_mask_of_final_tokens_hides_all_patches_of_each():
    backbone = swin()
    x, token = torch.randn(2, 3, 32, 40), torch.randn(32)
    mask = torch.rand(2, 20) < 0.5
    fine = mask.view(2, 4, 5).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    a, b = (backbone.tokens(x, mask=m, mask_token=token).patches for m in (mask, fine))
    assert torch.equal(a, b)


def test_layers_are_blocks_and_the_last_is_what_tokens_gives():
    backbone = swin()
    x = torch.randn(2, 3, 32, 32)
    layers = backbone.layers(x, backbone.depth)
    assert [t.patches.shape[1:] for t in layers] == [
        (256, 32), (256, 32), (64, 64), (64, 64), (16, 128), (16, 128)
    ]  # fmt: skip
    assert torch.equal(layers[-1].patches, backbone.tokens(x).patches)
    assert [torch.equal(a.pooled, b.pooled) for a, b in zip(
        backbone.layers(x, 3), layers[-3:], strict=True)] == [True] * 3  # fmt: skip
    last = backbone.facets(x, -2, "token").patches
    assert torch.allclose(backbone.net.norm(last), layers[-2].patches, atol=1e-6)
    assert torch.equal(backbone.facets(x, 1, "token").patches, layers[1].patches)


def test_facets_are_what_the_block_computes():
    backbone = swin()
    x, caught = torch.randn(1, 3, 16, 16), []
    attn = backbone.net.layers[2].blocks[0].attn  # here the map is one window, in row order
    attn.qkv.register_forward_hook(lambda _, __, out: caught.append(out))
    backbone.tokens(x)
    q, k, v = caught[0].flatten(0, -2).chunk(3, -1)
    for which, expected in (("query", q), ("key", k), ("value", v)):
        assert torch.allclose(backbone.facets(x, 4, which).patches[0], expected, atol=1e-6)
    with pytest.raises(UsageError, match="query, key, value, token"):
        backbone.facets(x, 0, "attention")
    with pytest.raises(UsageError, match="layers 0 to 5"):
        backbone.facets(x, 6, "token")


def test_a_fresh_swin_has_no_stochastic_depth_until_it_is_set_and_grows_with_depth():
    backbone = swin().train()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(backbone(x), backbone(x))
    backbone.set_drop_path(0.5)
    assert not torch.equal(backbone(x), backbone(x))
    blocks = [b for s in backbone.net.layers for b in s.blocks]
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    backbone.set_drop_path(0.0)
    assert torch.equal(backbone(x), backbone(x))


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.endswith(("large", "base"))])
def test_the_stride_is_known_before_the_network_is_built(name):
    backbone = build(name)
    known = stride_of(name)
    assert known == (1 if "mask" not in backbone.can else backbone.patch_size)
    assert backbone.patch_size % backbone.mask_patch == 0
    if "swin" in name:
        assert stride_of(name, 4) == build(name, patch_size=4, image_size=64).patch_size


def test_automatic_settings_fit_a_swin(photos):
    for size, patch in ((32, 2), (64, 4), (96, 6)):
        given = {"data": str(photos), "backbone": "swin_nano", "image_size": size}
        run = resolve(Request.of("dino", **given)).run
        assert run.settings.patch_size == patch
        assert run.options.local_size == size // 2
        run = resolve(Request.of("simmim", **given)).run
        assert size % run.options.unit == 0


@pytest.mark.parametrize("size", [36, 4])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(UsageError, match="multiples of 8"):
        build("swin_nano", image_size=size)
    with pytest.raises(UsageError, match="multiples of 8"):
        swin().tokens(torch.randn(1, 3, size, size))
    with pytest.raises(UsageError, match="image-size 8" if size < 8 else "image-size 32 or 40"):
        Encoder(swin(), image_size=size)


def test_what_it_cannot_do_is_said():
    with pytest.raises(UsageError, match="return its attention matrices"):
        Encoder(swin()).attention(torch.randn(1, 3, 32, 32))
    with pytest.raises(UsageError, match="needs a backbone that can leave patches out"):
        swin().tokens(torch.randn(1, 3, 32, 32), keep=torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match="version 1"):
        build("swinv2_tiny_window8_256")
    with pytest.raises(UsageError, match="swin_tiny"):
        build("swin_tinny")


def test_layer_wise_decay_counts_blocks_across_stages():
    backbone = swin()
    names = {id(p): n for n, p in backbone.named_parameters()}
    optim = Optim(lr=1.0, layer_decay=0.5)
    scale = {
        names[id(p)]: g["scale"]
        for g in build_optimiser(backbone, optim).param_groups
        for p in g["params"]
    }
    assert scale["net.norm.weight"] == 1.0
    assert scale["net.layers.2.blocks.1.mlp.fc1.weight"] == 0.5
    assert scale["net.layers.2.blocks.0.mlp.fc1.weight"] == 0.5**2
    assert scale["net.layers.1.blocks.1.mlp.fc1.weight"] == 0.5**3
    assert scale["net.layers.2.downsample.reduction.weight"] == 0.5**3
    assert scale["net.layers.0.blocks.0.mlp.fc1.weight"] == 0.5**6
    assert scale["net.patch_embed.proj.weight"] == 0.5**7


def test_images_of_other_channels():
    assert swin(channels=5)(torch.randn(1, 5, 32, 32)).shape == (1, 128)


@pytest.mark.parametrize("method", ["dino", "simclr", "simmim"])
def test_runs_save_an_encoder_that_loads_at_any_size(tiny_run, method):
    more = {"local_size": 16} if method == "dino" else {}
    run = tiny_run(method, backbone="swin_nano", **more)
    x = torch.randn(2, 3, 48, 48)
    encoder = load(str(run.folder), image_size=48)
    assert (encoder.backbone.name, encoder.size) == (PRESETS["swin_nano"].timm_name, 48)
    assert encoder.forward(x).shape == (2, 128)
    fresh = load(f"random:{run.folder}", image_size=48)
    assert not torch.equal(encoder.forward(x), fresh.forward(x))
    assert nl.show("pca", str(run.folder), data="digits", count=2)


def test_the_list_of_backbones_names_it(capsys):
    from nolabel.cli import main

    main(["list", "backbones"])
    out = capsys.readouterr().out
    assert "swin_nano" in out and "swin_*" in out
    assert backbones.PRESETS["swin_nano"].description in out

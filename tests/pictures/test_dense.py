"""Dense descriptors: the official numbers, overlapping patches, bins by a naive loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nolabel.backbones import build
from nolabel.data.creatures.world import Creatures
from nolabel.encoders import Encoder, load
from nolabel.errors import UsageError
from nolabel.pictures._dense import dense, ground_truth, log_bins, mean_colours

ORACLE = Path(__file__).parents[1] / "oracles" / "dense_descriptors.safetensors"


def official():
    o = load_file(ORACLE)
    kwargs = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    net = build("vit_tiny_patch16_224", image_size=32, kwargs=kwargs)
    missing = net.net.load_state_dict(
        {k.removeprefix("w."): v for k, v in o.items() if k.startswith("w.")}, strict=False
    )
    assert not missing.unexpected_keys and not missing.missing_keys
    return o, Encoder(net)


@pytest.mark.parametrize("stride", [8, 4])
@pytest.mark.parametrize("facet", ["key", "query", "value", "token"])
def test_facets_match_the_official_numbers_at_both_strides(stride, facet):
    o, encoder = official()
    x = o["x"]
    found = dense(encoder, x, layer=1, facet=facet, stride=stride).values
    expected = o[f"stride{stride}.{facet}"][:, 0]
    if facet != "token":  # there the head runs fastest
        expected = expected.unflatten(-1, (16, 3)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [8, 4])
def test_binned_keys_match_the_official_numbers(stride):
    o, encoder = official()
    found = dense(encoder, o["x"], layer=2, facet="key", stride=stride, bins=True)
    expected = o[f"stride{stride}.key_binned"][:, 0].unflatten(-1, (17, 16, 3))
    expected = expected.transpose(-1, -2).flatten(-3)
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)


def test_bins_equal_a_naive_loop():
    g = torch.Generator().manual_seed(0)
    h, w = 5, 7
    x = torch.randn(2, h * w, 3, generator=g, dtype=torch.float64)
    grid = x.view(2, h, w, 3)

    def mean(n, i, j, reach):  # of the part of the square that lies inside
        return grid[n, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1].mean(
            (0, 1)
        )

    def inside(i, j):
        return min(max(i, 0), h - 1), min(max(j, 0), w - 1)

    found = log_bins(x, (h, w), levels=3)
    for n, i, j in [(0, 0, 0), (1, 2, 3), (0, 4, 6), (1, 0, 5)]:
        expected = []
        for level in range(3):
            step = 3**level
            for dy in (-step, 0, step):
                for dx in (-step, 0, step):
                    if level and dy == dx == 0:
                        continue
                    expected.append(mean(n, *inside(i + dy, j + dx), step // 2))
        torch.testing.assert_close(found[n, i * w + j], torch.cat(expected))


def test_overlapping_patches_contain_the_plain_ones_and_the_stride_is_restored():
    encoder = load("random:vit_pico")
    b, p = encoder.backbone, encoder.backbone.patch_size
    x = encoder.prepare(Creatures(size=32, count=2).images(np.arange(2)))
    before = b.net.patch_embed.proj(x)
    with b.with_stride(p // 2):
        fine = b.net.patch_embed.proj(x)
        assert b.tokens(x).grid == (fine.shape[-2], fine.shape[-1]) == (15, 15)
    assert torch.allclose(fine[:, :, ::2, ::2], before, atol=1e-6)
    whole = dense(encoder, x, stride=p).values
    assert torch.equal(whole, dense(encoder, x).values)  # the patch's own stride changes no bit
    assert b.tokens(x).grid == (8, 8)
    for wrong in (3, 0):
        with pytest.raises(UsageError, match="divide the patch"), b.with_stride(wrong):
            pass
    with pytest.raises(UsageError, match="cut patches that overlap"):
        dense(load("random:resnet_nano", image_size=32), x, stride=2)


def test_attention_of_selected_rows_equals_that_of_all():
    b = load("random:vit_pico").backbone.eval()
    x = torch.randn(2, 3, 32, 32)
    whole = b.attention(x, 1)
    for rows in (slice(0, 1), slice(5, 7)):
        torch.testing.assert_close(b.attention(x, 1, rows), whole[:, :, rows])


@pytest.mark.parametrize("name", ["vit_pico", "resnet_nano", "swin_nano"])
def test_patches_have_the_right_centres_and_ground_truth(name):
    encoder = load(f"random:{name}", image_size=32)
    samples = [Creatures(size=32, count=3).read(i) for i in range(3)]
    d = dense(encoder, samples)
    h, w = d.grid
    assert d.values.shape[:2] == (3, h * w) and d.centres.shape == (h * w, 2)
    assert (d.saliency is not None) is (name == "vit_pico")
    assert d.facet == ("key" if name == "vit_pico" else "token")
    middle = d.map(np.arange(h * w))[h // 2, w // 2]
    assert d.centres[middle].tolist() == [32 / w * (w // 2 + 0.5), 32 / h * (h // 2 + 0.5)]
    masks = ground_truth(samples, "mask", 32)
    assert (
        masks is not None
        and d.at_centres(masks)[1, middle]
        == samples[1].mask[int(d.centres[middle][1]), int(d.centres[middle][0])]
    )
    assert (
        ground_truth(samples, "mask", 64) is None
        and ground_truth([samples[0].image], "mask", 32) is None
    )
    flat = np.full((1, 32, 32, 3), 51, np.uint8)
    torch.testing.assert_close(mean_colours(flat, (4, 4)), torch.full((1, 16, 3), 0.2))


def test_attention_of_a_query_patch_is_its_row():
    from nolabel.pictures.attention import attention, patch_at

    encoder = load("random:vit_pico")
    x = encoder.prepare(Creatures(size=32, count=2).images(np.arange(2)))
    whole = encoder.backbone.eval().attention(x, 2).detach()
    for patch in (0, 17, 63):
        found = encoder.attention(x, 2, patch=patch)
        torch.testing.assert_close(found, whole[:, :, 1 + patch, 1:], atol=1e-6, rtol=1e-5)
    with pytest.raises(UsageError, match="Patch 64 does not exist"):
        encoder.attention(x, patch=64)
    assert [patch_at(p, (4, 8)) for p in ((0, 0), (1, 1), (0.5, 0.3), (0.99, 0))] == [0, 31, 12, 7]
    (p,) = attention(encoder, x, layer=2, point=(0.2, 0.3))
    assert "patch 17" in p.caption and p.data["attention"].shape == (2, 4, 8, 8)
    assert np.allclose(p.data["attention"].reshape(2, -1, 64), whole[:, :, 18, 1:], atol=1e-6)
    with pytest.raises(UsageError, match="from 0 to 1"):
        attention(encoder, x, point=(2, 0))


@pytest.mark.parametrize(
    ("name", "facets"),
    [
        ("random:vit_pico", ("query", "key", "value", "token")),
        ("random:swin_nano", ("query", "key", "value", "token")),
        ("random:resnet_nano", ("token",)),
        ("beit", ("query", "key", "value", "token")),
    ],
)
def test_facets_of_several_layers_in_one_pass_equal_single_passes(name, facets):
    if name == "beit":
        kwargs = {"embed_dim": 48, "depth": 3, "num_heads": 3}
        backbone = build("beit_base_patch16_224", image_size=32, patch_size=8, kwargs=kwargs).eval()
    else:
        backbone = load(name).backbone.eval()
    x = torch.randn(2, 3, 32, 32)
    wanted = [(i, f) for i in (-1, 0, 1) for f in facets]
    with torch.no_grad():
        found = backbone.facets_of(x, wanted)
        for (layer, which), t in zip(wanted, found, strict=True):
            one = backbone.facets(x, layer, which)
            assert torch.equal(t.patches, one.patches) and torch.equal(t.pooled, one.pooled)
            assert t.grid == one.grid
    with pytest.raises(UsageError, match="facet"):
        backbone.facets_of(x, [(0, "colour")])
    with pytest.raises(UsageError, match="Layer 40"):
        backbone.facets_of(x, [(40, "token")])


@pytest.mark.parametrize("model", ["vit_pico", "beit"])
def test_dense_embeddings_are_values_through_the_rest_of_the_last_block(model):
    if model == "beit":
        kwargs = {"embed_dim": 48, "depth": 2, "num_heads": 3, "global_pool": "token"}
        b = build("beit_base_patch16_224", image_size=32, patch_size=8, kwargs=kwargs).eval()
    else:
        b = load("random:vit_pico").backbone.eval()
    x = torch.randn(1, 3, 32, 32)
    block = b.net.blocks[-1]
    with torch.no_grad():
        local = b.dense_embeddings(x)
        v = b.facets(x, -1, "value")
        values = torch.cat([v.prefix, v.patches], 1)[0]
        scale = 1.0 if getattr(block, "gamma_1", None) is None else block.gamma_1
        for p in (0, 3):
            expected = b.net.fc_norm(b.net.norm(scale * block.attn.proj(values[1 + p])))
            assert torch.allclose(local.patches[0, p], expected, atol=1e-5)

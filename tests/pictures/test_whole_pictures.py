"""Pictures of a network's weights or of a set: their numbers equal those by hand."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from nolabel.data.creatures.world import Creatures
from nolabel.data.sources.arrays import Arrays
from nolabel.encoders import load
from nolabel.errors import DataError, UsageError
from nolabel.pictures import PICTURES, function_of, options_of
from nolabel.pictures.attention_distance import attention_distance
from nolabel.pictures.filters import filters, smoothness
from nolabel.pictures.neighbours import neighbours
from nolabel.pictures.positions import positions
from nolabel.pictures.tsne import purity, tsne
from nolabel.tools.show import show

VIT = load("random:vit_pico")
CLASSES = ("red", "green", "blue")


def colours(n, seed=0):
    """A source of n red, green and blue noise images in turn."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.integers(0, 60, (n, 32, 32, 3), dtype=np.uint8)
    x[np.arange(n), :, :, y] += 150
    return Arrays("colours", x, y, CLASSES)


def test_smooth_filters_correlate_and_noise_does_not():
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(16) / 5)
    assert smoothness(np.ones((2, 3, 4, 4))) == 1.0
    assert smoothness(np.tile(wave[:, None] * wave, (1, 3, 1, 1))) > 0.9
    assert abs(smoothness(rng.normal(size=(64, 3, 8, 8)))) < 0.03
    assert smoothness(np.ones((2, 3, 1, 1))) == 0.0


def test_components_of_filters_span_their_basis():
    encoder = load("random:resnet_nano", image_size=32)
    conv = encoder.backbone.net.conv1
    k = conv.weight.shape[-1]
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3 * k * k, 2)))
    mixed = np.random.default_rng(1).normal(size=(conv.weight.shape[0], 2)) @ basis.T
    conv.weight.data = torch.tensor(mixed.reshape(conv.weight.shape)).float()
    (p,) = filters(encoder, most=2)
    found = p.data["components"].reshape(2, -1)
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    centred = basis - basis.mean(0)  # what components are of
    seen = np.linalg.norm(found @ np.linalg.qr(centred)[0], axis=1)
    np.testing.assert_allclose(seen, 1, atol=1e-4)
    assert p.numbers["explained_8"] == pytest.approx(1)
    with pytest.raises(UsageError, match="no convolution"):
        filters(load("pixels", image_size=8))


def test_positions_number_is_high_for_smooth_embeddings():
    (p,) = positions(load("random:vit_pico"))
    assert abs(p.numbers["near_is_alike"]) < 0.1
    encoder = load("random:vit_pico")
    net = encoder.backbone.net
    h, w = net.patch_embed.grid_size
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    at = np.linspace(0, h - 1, net.pos_embed.shape[-1] // 2)
    bumps = np.concatenate([np.exp(-np.square(v.reshape(-1, 1) - at) / 8) for v in (y, x)], 1)
    net.pos_embed.data[0, -h * w :] = torch.tensor(bumps).float()
    (p,) = positions(encoder)
    assert p.numbers["near_is_alike"] > 0.95 and p.data["cosine"].shape == (h, w, h, w)
    with pytest.raises(UsageError, match="no position embedding"):
        positions(load("random:resnet_nano", image_size=32))


def test_uniform_attention_has_the_mean_distance_of_the_grid(monkeypatch):
    b = VIT.backbone

    def uniform(x, layer=-1, rows=None):
        return torch.full((len(x), 2, 65, 65), 1 / 65)

    def self_only(x, layer=-1, rows=None):
        return torch.eye(65).expand(len(x), 2, 65, 65)

    images = colours(2).pixels
    places = np.stack(np.meshgrid(*[np.arange(8) * 4.0] * 2), -1).reshape(-1, 2)
    expected = np.mean([np.linalg.norm(places - p, axis=1).mean() for p in places])
    monkeypatch.setattr(b, "attention", uniform)
    (p,) = attention_distance(VIT, images)
    assert p.numbers["last_layer"] == pytest.approx(expected) == pytest.approx(p.numbers["even"])
    assert p.numbers["entropy_share_last"] == pytest.approx(1)
    monkeypatch.setattr(b, "attention", self_only)
    (p,) = attention_distance(VIT, images)
    assert p.numbers["first_layer"] == 0 and p.numbers["entropy_share_last"] == pytest.approx(0)
    monkeypatch.undo()
    (p,) = attention_distance(VIT, images)
    assert p.data["distance"].shape[0] == b.depth
    assert 0 < p.numbers["first_layer"] < 2 * expected


def test_neighbours_equal_a_sort_without_the_query():
    encoder, gallery = load("pixels", image_size=32), colours(30)
    samples = [gallery.read(i) for i in (0, 4, 8)]
    (p,) = neighbours(encoder, samples, gallery=gallery, k=5)
    z = encoder.embed(gallery.pixels, normalize=True)
    for row, i in zip(p.data["rows"], (0, 4, 8), strict=True):
        order = (z @ z[i]).argsort(descending=True).tolist()
        assert row.tolist() == [j for j in order if j != i][:5]
    assert p.numbers["same_class"] == 1.0
    assert p.numbers["same_class_chance"] == pytest.approx(1 / 3)
    other = colours(6, seed=1)  # none of them is in the gallery: nothing is passed over
    (p,) = neighbours(encoder, [other.read(0)], gallery=gallery, k=5)
    assert p.data["rows"].shape == (1, 5) and p.data["cosine"].max() < 1 - 1e-5


def test_tsne_measures_purity_of_features_and_map():
    (p,) = tsne(load("pixels", image_size=32), gallery=colours(60), perplexity=10)
    assert p.numbers["same_class"] == 1.0 and p.numbers["same_class_on_map"] > 0.9
    assert p.numbers["same_class_chance"] == pytest.approx(1 / 3)
    assert p.data["map"].shape == (60, 2)
    z = torch.nn.functional.normalize(torch.randn(300, 8), dim=1)
    assert purity(z, np.arange(300) % 3) == pytest.approx(1 / 3, abs=0.05)
    bare = Arrays("bare", colours(12).pixels)
    (p,) = tsne(load("pixels", image_size=32), gallery=bare)
    assert not p.numbers and "labels" not in p.data
    with pytest.raises(DataError, match="no means of classes"):
        tsne(VIT, gallery=bare, centroids=True)
    with pytest.raises(DataError, match="four points"):
        tsne(VIT, gallery=colours(12), centroids=True)
    with pytest.raises(UsageError, match="by must be one of"):
        tsne(VIT, gallery=bare, by="pca")


def test_tsne_of_centroids_has_a_point_for_each_class():
    (p,) = tsne(VIT, gallery=Creatures("test", size=32, count=100), centroids=True)
    assert p.data["map"].shape == (10, 2)


def test_show_requires_images_if_the_picture_needs_some():
    assert show("filters", VIT)[0].name == "filters"
    assert len(show("neighbours", VIT, "creatures:test", count=2, k=3)[0].data["rows"]) == 2
    with pytest.raises(UsageError, match="needs images"):
        show("neighbours", VIT)


@pytest.mark.parametrize("name", PICTURES)
def test_every_keyword_of_a_picture_is_an_option_with_a_help_text_or_supplied_by_show(name):
    supplied = {"gallery", "masks", "mean", "std", "on_preview"}
    parameters = inspect.signature(function_of(name)).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    options = {o.name: o for o in options_of(name)}
    assert options.keys() == keywords.keys() - supplied
    for option in options.values():
        assert option.help and option.default is keywords[option.name], option.name


def test_several_encoders_are_stacked_on_the_same_images():
    both = ["random:vit_pico", "pixels"]
    (p,) = show("neighbours", both, "creatures:test", count=2, k=3)
    alone = [show("neighbours", e, "creatures:test", count=2, k=3)[0] for e in both]
    assert p.image.shape[0] > sum(a.image.shape[0] for a in alone)
    for i, a in enumerate(alone):
        assert p.numbers[f"same_class.{i}"] == a.numbers["same_class"]
        assert np.array_equal(p.data[f"rows.{i}"], a.data["rows"])
    one = show("filters", ["random:vit_pico"])
    assert "smoothness" in one[0].numbers
    with pytest.raises(UsageError, match="at least one"):
        show("filters", [])

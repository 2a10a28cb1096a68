"""Principal components through the layers: aligned colours, and the R² of position and part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nolabel.data.creatures.world import Creatures
from nolabel.encoders import load
from nolabel.errors import UsageError
from nolabel.pictures._dense import Dense, dense
from nolabel.pictures.pca import align_components, part_accuracy, pca, place_r2

SAMPLES = [Creatures("test", size=32).read(i) for i in range(8)]


def make_dense(values, parts=None):
    n, p, _ = values.shape
    side = int(p**0.5)
    middles = np.arange(side) * 4 + 2.0
    centres = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
    return Dense(values, (side, side), np.zeros((n, 4 * side, 4 * side, 3), np.uint8), centres,
                 None, "token")  # fmt: skip


def test_align_components_undoes_rotation_reflection_and_scale():
    a = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    a = (a.reshape(-1, 3) - a.reshape(-1, 3).mean(0)).reshape(a.shape)
    u, _, vt = np.linalg.svd(a.reshape(-1, 3), full_matrices=False)
    white = (u * np.sqrt(len(u))).reshape(a.shape)  # components of unit deviation
    found = align_components(white @ q, white)
    np.testing.assert_allclose(found, white, atol=1e-6)
    assert vt.shape == (3, 3)


def test_place_r2_is_high_for_features_with_the_position_only():
    g = torch.Generator().manual_seed(0)
    d = make_dense(torch.randn(6, 64, 5, generator=g))
    assert place_r2(d) < 0.1
    known = torch.cat([torch.tensor(d.centres).float().expand(6, -1, -1), d.values], -1)
    assert place_r2(make_dense(known)) > 0.95
    assert np.isnan(place_r2(make_dense(known[:1])))


def test_part_accuracy_is_high_for_features_with_the_part_only():
    own = np.random.default_rng(0).integers(0, 5, (6, 8, 8)).repeat(4, 1).repeat(4, 2)
    g = torch.Generator().manual_seed(0)
    d = make_dense(torch.randn(6, 64, 5, generator=g))
    assert part_accuracy(d, own) == pytest.approx(0.25, abs=0.1)
    labels = torch.from_numpy(d.at_centres(own))
    known = torch.nn.functional.one_hot(labels, 5).float() + 0.01 * d.values
    assert part_accuracy(make_dense(known), own) == 1.0


@pytest.mark.parametrize("name", ["random:vit_pico", "random:resnet_nano"])
def test_pca_of_several_layers_adds_a_chart(name):
    encoder = load(name, image_size=32)
    p, curves = pca(encoder, SAMPLES, layers=3)
    assert curves.name == "pca-layers" and {"place_last", "part_last"} <= curves.numbers.keys()
    assert len(curves.data["layers"]) == 3
    assert p.data["scores_2"].shape[0] == 8
    with pytest.raises(UsageError, match="layers must be"):
        pca(encoder, SAMPLES, layers=0)


def test_pca_foreground_leaves_the_background_black():
    (p,) = pca(load("random:vit_pico"), SAMPLES, foreground=True, facet="key", stride=2)
    gone = np.isnan(p.data["scores"]).all(-1)
    assert p.data["scores"].shape == (8, 15, 15, 3)
    assert 0.5 <= gone.mean() < 1


def test_self_similarity_of_keys_has_components_of_each_image():
    encoder = load("random:vit_pico")
    images = [s.image for s in SAMPLES[:3]]
    whole = pca(encoder, images, facet="self-similarity")[0]
    alone = pca(encoder, images[:1], facet="self-similarity")[0]
    np.testing.assert_allclose(whole.data["scores"][:1], alone.data["scores"], atol=1e-5)
    d = dense(encoder, images[:1], facet="key", salient=False)
    z = torch.nn.functional.normalize(d.values[0].double(), dim=1)
    centred = z @ z.T - (z @ z.T).mean(0)
    left, size, _ = torch.linalg.svd(centred)
    expected = (left * size)[:, :3].abs().numpy().reshape(8, 8, 3)
    np.testing.assert_allclose(np.abs(alone.data["scores"][0]), expected, atol=1e-4)
    p = pca(encoder, images, facet="self-similarity", layers=2)[0]
    assert np.isfinite(p.data["scores_1"]).all() and "of each image" in p.caption


def test_the_papers_colours_are_the_second_to_fourth_component():
    encoder = load("random:vit_pico")
    first = pca(encoder, SAMPLES, facet="key")[0]
    later = pca(encoder, SAMPLES, facet="key", components=(2, 3, 4), each=True)[0]
    np.testing.assert_array_equal(later.data["scores"][..., :2], first.data["scores"][..., 1:])
    assert later.numbers["explained_1"] == first.numbers["explained_2"]
    for wrong in ((1, 2), (0, 1, 2)):
        with pytest.raises(UsageError, match="three numbers from 1"):
            pca(encoder, SAMPLES, components=wrong)

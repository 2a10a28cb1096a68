"""Measures without labels, against their formulas on features whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import nolabel as nl
from nolabel.data.creatures.world import Creatures
from nolabel.data.sources.arrays import Arrays
from nolabel.engine.monitor.signals import effective_rank
from nolabel.errors import DataError, UsageError
from nolabel.protocols._invariance import neighbours_kept, turns_told
from nolabel.protocols.labelfree import Options, alpha_req, embed_all, embed_views, lidar, rankme
from nolabel.protocols.labelfree import self_retrieval as retrieved


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rankme_counts_the_directions_in_use_and_equals_the_health_signal():
    z = torch.linalg.qr(normal(40, 6))[0]
    assert rankme(z) == pytest.approx(6)
    assert rankme(z @ torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0]).double())) == pytest.approx(3)
    some = normal(50, 8) @ normal(8, 8, seed=1)
    assert rankme(some) == pytest.approx(effective_rank(some), rel=1e-4)


def test_lidar_counts_directions_in_which_images_differ_more_than_their_views():
    n, v, d = 400, 8, 6
    means = normal(n, 1, d) * torch.tensor([10.0, 10, 10, 0, 0, 0])
    noise = normal(n, v, d, seed=1)
    assert lidar(means + noise) == pytest.approx(3, abs=0.3)
    assert lidar(noise) > 5  # nothing tells images apart: all directions are alike
    # Scaling a direction changes nothing: it scales both covariances.
    scaled = (means + noise) * torch.tensor([1.0, 7, 1, 1, 1, 0.2])
    assert lidar(scaled) == pytest.approx(lidar(means + noise), rel=0.02)


def test_lidar_equals_its_formula():
    z = normal(30, 5, 4)
    means = z.mean(1).numpy()
    between = np.cov(means.T)
    within = sum(np.outer(x - m, x - m) for m, xs in zip(means, z.numpy(), strict=True) for x in xs)
    within = within / (30 * 4)
    within += np.eye(4) * 1e-4 * np.trace(within) / 4
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    p = np.linalg.eigvalsh(root @ between @ root)
    p = p / p.sum()
    assert lidar(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_is_the_power_of_a_spectrum_that_is_one(alpha):
    basis = torch.linalg.qr(normal(500, 64) - normal(500, 64).mean(0))[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0]  # without mean, so that it is a covariance
    z = basis * torch.arange(1, 65, dtype=torch.float64) ** (-alpha / 2)
    assert alpha_req(z) == pytest.approx(alpha, rel=0.05)
    assert alpha_req(torch.ones(10, 3)) == math.inf


def test_views_find_their_own_image_or_do_not():
    own = normal(200, 1, 16)
    assert retrieved(own + 0.01 * normal(200, 3, 16, seed=1)) == 200
    assert retrieved(normal(200, 3, 16)) < 8


def test_neighbours_are_kept_by_a_rotation_and_not_by_other_features():
    z = normal(200, 16)
    rotation = torch.linalg.qr(normal(16, 16, seed=1))[0]
    assert neighbours_kept(z, z @ rotation) == 1
    assert neighbours_kept(z, normal(200, 24, seed=2)) == pytest.approx(10 / 199, abs=0.02)
    clusters = 10 * normal(20, 16).repeat_interleave(11, 0)  # ten others in each
    noisy = [clusters + normal(220, 16, seed=s) for s in (1, 2)]
    assert neighbours_kept(*noisy) == 1


def test_turns_are_told_where_features_hold_them():
    z = normal(80, 1, 12).repeat(1, 4, 1)
    assert turns_told(z) == pytest.approx(0.25, abs=0.02)
    told = z + 5 * normal(4, 12, seed=1)
    assert turns_told(told) > 0.95
    assert turns_told(normal(400, 4, 12)) == pytest.approx(0.25, abs=0.06)


def test_all_views_are_embedded_in_one_pass_and_turned_ones_are_the_image_turned():
    encoder, o = nl.load("random:resnet_nano", image_size=32), Options(images=16, views=3)
    source = Creatures("test", size=32, count=12)
    z = embed_all(encoder, source, o)
    assert [part.shape[1] for part in z] == [3, 2, 1, 4]
    torch.testing.assert_close(z.crops, embed_views(encoder, source, o), atol=1e-4, rtol=1e-4)
    pixels = source.images(np.arange(12))
    for k in range(4):
        turned = Arrays("turned", np.rot90(pixels, k, (1, 2)).copy())
        alone = embed_all(encoder, turned, o).turned[:, 0]
        torch.testing.assert_close(z.turned[:, k], alone, atol=1e-3, rtol=1e-3)


def test_views_are_drawn_for_each_image_and_repeat_with_the_seed():
    encoder, o = nl.load("random:resnet_nano", image_size=32), Options(images=16, views=3)
    source = Creatures("test", size=32, count=12)
    z = embed_views(encoder, source, o)
    assert z.shape == (12, 3, encoder.dim)
    assert torch.equal(z, embed_views(encoder, source, o))
    assert not torch.allclose(z[:, 0], z[:, 1])
    fewer = embed_views(encoder, source, Options(images=16, views=3, batch_size=6))
    torch.testing.assert_close(z, fewer, atol=1e-4, rtol=1e-4)


def test_the_protocol_needs_no_labels_and_stands_in_comparisons():
    bare = Arrays("bare", Creatures("test", size=32, count=60).images(np.arange(60)))
    report = nl.evaluate("labelfree", "random:resnet_nano", test=bare, views=4)
    rows = {r["setting"]: r["value"] for r in report.rows}
    assert list(rows) == [
        "RankMe", "LiDAR", "alpha-ReQ", "self-retrieval", "retrieval of parts",
        "retrieval with noise", "retrieval of turned", "neighbours kept", "turns told",
    ]  # fmt: skip
    assert report.best["setting"] == "self-retrieval"
    assert 0 < rows["RankMe"] <= 1 and 0 < rows["LiDAR"] <= 1 and rows["alpha-ReQ"] > 0
    assert rows["self-retrieval"] >= 3 / 60
    table = nl.compare(
        ["random:resnet_nano", "random:vit_pico"], train="creatures", protocols=("labelfree",),
        options={"labelfree": {"images": 60, "views": 3}},
    )  # fmt: skip
    assert {r["encoder"] for r in table.rows} == {"random:resnet_nano", "random:vit_pico"}
    few_views = {"labelfree": {"images": 60, "views": 3}}
    free = nl.compare(["random:resnet_nano"], test=bare, options=few_views)  # nothing is learnt
    assert {r["protocol"] for r in free.rows} == {"labelfree"} and str(free).startswith("test bare")
    for wrong in ({"test": None}, {"test": bare, "protocols": ("knn",)}):
        with pytest.raises(UsageError, match="needs --train"):
            nl.compare(["pixels"], **wrong)
    for wrong in ({"views": 1}, {"images": 3}):
        with pytest.raises(UsageError, match="at least"):
            nl.evaluate("labelfree", "pixels", test=bare, **wrong)
    few = Arrays("few", bare.pixels[:5])
    with pytest.raises(DataError, match="fewer than eight"):
        nl.evaluate("labelfree", "random:resnet_nano", test=few)

"""Correspondences, cuts, parts and similarities: near perfect with oracle features, at chance with
random ones, and by hand on small cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nolabel.data.creatures.world import Creatures
from nolabel.encoders import load
from nolabel.errors import DataError, UsageError
from nolabel.pictures._dense import Dense
from nolabel.pictures.correspond import best_buddies, correspond, pck, spread_pairs
from nolabel.pictures.objects import normalised_cut, objects
from nolabel.pictures.parts import (
    agreement,
    cluster_until_elbow,
    foreground_clusters,
    overlap,
    parts,
    segment,
)
from nolabel.pictures.similarity import part_auroc, similarity
from nolabel.protocols.attention import ceiling, iou

SIDE, GRID = 64, (32, 32)
VIT = load("random:vit_pico")


def creatures(n, label=None, side=SIDE):
    source = Creatures("test", size=side, count=400)
    some = np.flatnonzero(source.labels == label) if label is not None else np.arange(n)
    return [source.read(int(i)) for i in some[:n]]


def oracle_descriptors(samples, what="parts", noise=0.05):
    """One-hot descriptors of the label at the centre of each patch, with noise; and the labels."""
    step = SIDE // GRID[0]
    middles = np.arange(GRID[0]) * step + step / 2
    centres = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
    d = Dense(torch.zeros(len(samples), 1, 1), GRID, np.stack([s.image for s in samples]), centres,
              None, "token")  # fmt: skip
    labels = d.at_centres(np.stack([getattr(s, what) for s in samples])).astype(np.int64)
    z = F.one_hot(torch.from_numpy(labels), 12).float()
    z = z + noise * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    saliency = torch.from_numpy((labels > 0).astype(np.float32))
    return Dense(z, GRID, d.pixels, centres, saliency, "token"), labels


def random_descriptors(d):
    z = torch.randn(d.values.shape, generator=torch.Generator().manual_seed(1))
    return Dense(z, d.grid, d.pixels, d.centres, d.saliency, "token")


def test_areas_count_the_pixels_nearest_to_each_patch():
    d, _ = oracle_descriptors(creatures(1))
    mask = creatures(1)[0].mask.copy()
    mask[:3] = 255
    inside, outside = d.areas(mask)
    cells = mask.reshape(32, 2, 32, 2)
    assert np.array_equal(inside, (cells == 1).sum((1, 3)))
    assert np.array_equal(outside, (cells == 0).sum((1, 3)))


def test_best_buddies_are_mutual_and_symmetric():
    g = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(n, 8, generator=g), dim=1) for n in (30, 40))
    one, other, cos = best_buddies(a, b)
    whole = a @ b.T
    expected = {
        (i, j) for i in range(30) for j in range(40)
        if whole[i].argmax() == j and whole[:, j].argmax() == i
    }  # fmt: skip
    assert set(zip(one.tolist(), other.tolist(), strict=True)) == expected
    assert torch.equal(cos, cos.sort(descending=True).values)
    back = best_buddies(b, a)
    assert set(zip(back[1].tolist(), back[0].tolist(), strict=True)) == expected
    same = best_buddies(a, a)
    assert torch.equal(same[0], same[1]) and len(same[0]) == 30
    salient = torch.zeros(30, dtype=torch.bool)
    salient[:5] = True
    assert set(best_buddies(a, b, salient, None)[0].tolist()) <= set(range(5))
    assert not len(best_buddies(a, b, ~(salient | True), None)[0])


def test_spread_pairs_picks_the_heaviest_of_each_cluster():
    pairs = torch.cat([torch.randn(10, 2) * 0.01 + 10 * i for i in range(3)])
    weight = torch.rand(30)
    some = spread_pairs(pairs, weight, 3, 0)
    assert some.tolist() == [int(weight[10 * i : 10 * i + 10].argmax()) + 10 * i for i in range(3)]
    assert spread_pairs(pairs[:2], weight, 3, 0).tolist() == [0, 1]


def test_pck_is_high_for_oracle_features_and_chance_for_random_ones():
    samples = creatures(40, label=1)
    keypoints = [s.keypoints for s in samples]
    d, _ = oracle_descriptors(samples)
    # A feature for each visible keypoint: nearness to it.
    z = []
    for m in keypoints:
        away = np.linalg.norm(d.centres[:, None] - m[None, :, :2], axis=-1)
        z.append(np.exp(-np.square(away / 4)) * (m[:, 2] > 0))
    seen = F.pad(torch.tensor(np.stack(z)).float(), (0, 1), value=0.3)  # far is not a direction
    known = Dense(seen, GRID, d.pixels, d.centres, None, "")
    top = pck(known, samples, keypoints, oracle=True)
    assert top > 0.95 and pck(known, samples, keypoints) > 0.9 * top
    # A random patch lies within 0.1 of the box of a point with a chance of pi 0.1^2 box^2 / side^2.
    boxes = [np.ptp(np.nonzero(s.mask), axis=1).max() + 1 for s in samples[1::2]]
    expected = np.mean(np.pi * (0.1 * np.array(boxes)) ** 2 / SIDE**2)
    assert abs(pck(random_descriptors(d), samples, keypoints) - expected) < 0.06
    assert pck(None, [samples[0]] * 2, [keypoints[0]] * 2) == 1.0


def test_normalised_cut_finds_the_object_with_oracle_features_only():
    samples = creatures(6)
    masks = np.stack([s.mask for s in samples])
    d, _ = oracle_descriptors(samples, "mask")
    areas = [d.areas(m) for m in masks]
    top = np.mean([ceiling(*a) for a in areas])
    found = [normalised_cut(z, GRID)[1] for z in d.values]
    assert np.mean([iou(k, *a) for k, a in zip(found, areas, strict=True)]) > 0.9 * top
    noise = [normalised_cut(z, GRID)[1] for z in random_descriptors(d).values]
    assert np.mean([iou(k, *a) for k, a in zip(noise, areas, strict=True)]) < 0.4


def test_normalised_cut_equals_the_eigenvector_of_the_laplacian():
    g = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(20, 5, generator=g) + 2, torch.randn(16, 5, generator=g) - 1])
    vector, kept = normalised_cut(z, (6, 6), 0.1)
    unit = F.normalize(z.double(), dim=1).numpy()
    w = np.where(unit @ unit.T > 0.1, 1.0, 1e-5)
    root = 1 / np.sqrt(w.sum(1))
    values, vectors = np.linalg.eigh(np.eye(36) - root[:, None] * w * root)
    expected = root * vectors[:, 1]
    cosine = expected @ vector.ravel() / np.linalg.norm(expected) / np.linalg.norm(vector)
    assert abs(cosine) == pytest.approx(1, abs=1e-6)
    first = np.abs(vector).argmax()
    assert vector.ravel()[first] > 0 and kept.ravel()[first]


def test_foreground_and_parts_match_with_oracle_features_only():
    samples = creatures(8, label=0)
    masks = np.stack([s.mask for s in samples])
    d, labels = oracle_descriptors(samples)
    kinds = len(np.unique(labels[labels > 0]))
    front, groups = segment(d.values, d.saliency, kinds)
    top = np.mean([ceiling(*d.areas(m)) for m in masks])
    assert overlap(d, front, masks) > 0.95 * top
    scores = agreement(groups, labels)
    assert scores["nmi"] > 0.95 and scores["ari"] > 0.95
    noise = agreement(segment(random_descriptors(d).values, d.saliency, kinds)[1], labels)
    assert abs(noise["ari"]) < 0.03 and noise["nmi"] < 0.03


def test_clustering_stops_at_the_elbow():
    g = np.random.default_rng(0)
    z = np.repeat(np.eye(5), 30, 0) + 0.01 * g.normal(size=(150, 5))
    assert 5 <= len(np.unique(cluster_until_elbow(z))) <= 14
    found = cluster_until_elbow(z)
    assert all(len(np.unique(found[labels])) >= 1 for labels in np.arange(150).reshape(5, 30))
    assert len({(i // 30, int(v)) for i, v in enumerate(found)}) == len(np.unique(found))
    assert len(np.unique(cluster_until_elbow(np.ones((4, 3))))) == 1


def test_foreground_clusters_are_salient_in_most_of_all_images():
    groups = np.array([[0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 3]])
    saliency = np.array([[0.1, 0.1, 0.9, 0.9]] * 3 + [[0.1, 0.1, 0.1, 0.9]])
    # 1 is salient in three of four images; 2 and 3 are salient wherever they are: in one image.
    assert foreground_clusters(list(groups), list(saliency)).tolist() == [1]
    assert foreground_clusters(list(groups), list(saliency), votes=0.25).tolist() == [1, 2, 3]


def test_part_auroc_is_one_for_oracle_features_and_half_for_random_ones():
    samples = creatures(5)
    d, labels = oracle_descriptors(samples)
    at = int(np.flatnonzero(labels[0] > 0)[0])
    for z, low, high in ((d.values, 0.99, 1.0), (random_descriptors(d).values, 0.4, 0.6)):
        unit = F.normalize(z, dim=-1)
        assert low <= part_auroc(unit @ unit[0, at], labels == labels[0, at]) <= high


@pytest.mark.parametrize("name", ["random:vit_pico", "random:resnet_nano", "pixels"])
def test_each_picture_is_drawn_with_its_numbers_and_baselines(name):
    side = 24 if name == "pixels" else SIDE  # there a patch is a pixel
    encoder = load(name, image_size=side)
    samples = creatures(4, label=2, side=side)
    (p,) = similarity(encoder, samples, point=(0.5, 0.5))
    assert {"auroc", "auroc_colour"} <= p.numbers.keys()
    (p,) = correspond(encoder, samples, points=6)
    assert {"pck", "pck_colour", "pck_same_place", "pck_ceiling"} <= p.numbers.keys()
    assert p.numbers["pck_ceiling"] >= p.numbers["pck"] >= 0
    assert len(p.data["points_0"]) == len(p.data["points_1"]) <= 6
    (p,) = objects(encoder, samples)
    assert {"iou", "iou_colour", "iou_whole", "iou_ceiling"} <= p.numbers.keys()
    if name == "random:vit_pico":
        (p,) = parts(encoder, samples, number=3, stride=2)
        assert {"iou", "iou_saliency", "nmi", "ari", "ari_colour"} <= p.numbers.keys()
        assert p.data["parts"].shape == (4, 31, 31) and p.data["parts"].max() <= 2
    else:
        with pytest.raises(UsageError, match="no class token"):
            parts(encoder, samples)
    plain = [s.image for s in samples]  # without truth: a picture without scores
    assert not similarity(encoder, plain)[0].numbers and not objects(encoder, plain)[0].numbers
    with pytest.raises(UsageError, match="pairs of images"):
        correspond(encoder, plain[:3])
    with pytest.raises(UsageError, match="from 0 to 1"):
        similarity(encoder, plain, point=(0.5, 3))


def test_show_groups_images_by_class_and_refuses_unknown_options():
    from nolabel.tools.show import _samples, show

    source = Creatures("test", size=32)
    for grouping, labels in (("pairs", [0, 0, 1, 1]), ("class", [0, 0, 0, 0]), ("", None)):
        samples = _samples(source, 4, None, grouping)
        assert labels is None or [s.label for s in samples] == labels
        assert len(samples) == 4
    (p,) = show("objects", VIT, "creatures:test", count=3, label="fish", tau=0.1)
    assert p.data["object"].shape[0] == 3
    with pytest.raises(DataError, match="no class 'unicorn'"):
        show("objects", VIT, "creatures:test", label="unicorn")
    with pytest.raises(UsageError, match="Unknown option of show objects 'mass'"):
        show("objects", VIT, "creatures:test", mass=0.5)

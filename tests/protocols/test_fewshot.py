"""Few-shot: classes that lie apart need one label each, noise stays at chance, draws repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

import nolabel as nl
from nolabel.data.sources.arrays import Arrays
from nolabel.encoders.features import Features
from nolabel.errors import DataError, UsageError
from nolabel.protocols.fewshot import classify, draw_few, run_fewshot


def sets(z, y):
    source = Arrays("set", np.zeros((len(y), 16, 16, 3), np.uint8), y, tuple(map(str, range(5))))
    return source, Features(torch.tensor(z).float(), torch.tensor(y), (), torch.arange(len(y)))


def judged(make, **options):
    rng = np.random.default_rng(0)
    y, t = np.repeat(np.arange(5), 12), np.repeat(np.arange(5), 40)
    (train, a), (test, b) = sets(make(rng, y), y), sets(make(rng, t), t)
    return run_fewshot(nl.load("random:vit_pico"), train, test, features=(a, b), **options)


@pytest.mark.parametrize("classifier", ["logistic", "mean"])
def test_classes_apart_need_one_label_and_noise_stays_at_chance(classifier):
    apart = judged(lambda rng, y: np.eye(5)[y] + 0.01 * rng.normal(size=(len(y), 5)), k=(1, 5),
                   classifier=classifier)  # fmt: skip
    assert [r["value"] for r in apart.rows] == [1.0, 1.0]
    noise = judged(lambda rng, y: rng.normal(size=(len(y), 8)), k=(5,), classifier=classifier)
    assert abs(noise.best["value"] - noise.best["chance"]) < 0.07


def test_more_labels_help_and_the_interval_is_that_of_the_draws():
    def make(rng, y):
        return np.eye(5)[y] + 0.4 * rng.normal(size=(len(y), 5))

    report = judged(make, k=(1, 10))
    few, many = report.rows
    assert many["value"] > few["value"]
    assert few["high"] - few["low"] > many["high"] - many["low"]
    assert judged(make, k=(1, 10)).rows == report.rows


def test_each_draw_has_k_of_every_class_without_repetition():
    members = [np.arange(10), np.arange(10, 14), np.arange(14, 30)]
    chosen = draw_few(members, 4, (0, 4, 1))
    assert len(set(chosen)) == 12
    assert [np.isin(chosen, m).sum() for m in members] == [4, 4, 4]
    assert not np.array_equal(chosen, draw_few(members, 4, (0, 4, 2)))


def test_the_nearest_mean_is_scikit_learns_on_centred_unit_features():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 6)
    x, z = rng.normal(size=(24, 6)) + y[:, None], rng.normal(size=(50, 6)) + 1.5
    centre = x.mean(0)

    def unit(v):
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    peer = NearestCentroid().fit(unit(x - centre), y)
    peer.centroids_ = unit(peer.centroids_)
    assert np.array_equal(classify(x, y, z, "mean", 1.0), peer.predict(unit(z - centre)))


def test_too_few_images_and_wrong_options_are_said_clearly():
    with pytest.raises(DataError, match="smaller --k"):
        judged(lambda rng, y: rng.normal(size=(len(y), 5)), k=(13,))
    report = judged(lambda rng, y: rng.normal(size=(len(y), 5)), k=(5, 13))
    assert len(report.rows) == 1 and any("above 12 was left out" in n for n in report.notes)
    with pytest.raises(UsageError, match="Unknown classifier"):
        judged(lambda rng, y: rng.normal(size=(len(y), 5)), classifier="svm")

"""The linear protocol's sweeps: blocks and pools, LARS, logistic regression, augmented features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import nolabel as nl
from nolabel.data.creatures.world import Creatures
from nolabel.errors import DataError, UsageError
from nolabel.protocols._heads import INIT_STD, LARS_TRUST, MOMENTUM, fit_heads
from nolabel.protocols.block_features import extract_block_features
from nolabel.protocols.linear import Options

TRAIN, TEST = Creatures("train", count=120), Creatures("test", count=60)
GIVEN = {"train": TRAIN, "test": TEST, "epochs": 10}


def test_lars_scales_each_heads_step_as_a_naive_loop_does():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 5, generator=g, dtype=torch.float64), torch.arange(24) % 3
    heads = fit_heads(x, y, [1.0, 30.0], classes=3, epochs=4, batch_size=24, batchnorm=False,
                      seed=3, lars=True)  # fmt: skip
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(3)) * INIT_STD
    for h, rate in enumerate((1.0, 30.0)):
        w, b = start.double().clone().requires_grad_(True), torch.zeros(3, dtype=torch.float64, requires_grad=True)  # fmt: skip # noqa: E501
        speed = [torch.zeros_like(w), torch.zeros_like(b)]
        for step in range(4):
            loss = torch.nn.functional.cross_entropy(x @ w.T + b, y)
            slopes = torch.autograd.grad(loss, (w, b))
            lr = rate * 0.5 * (1 + np.cos(np.pi * step / 4))
            trust = LARS_TRUST * w.detach().norm() / slopes[0].norm()
            with torch.no_grad():
                for p, v, slope in zip((w, b), speed, (slopes[0] * trust, slopes[1]), strict=True):
                    v.mul_(MOMENTUM).add_(slope)
                    p.sub_(lr * v)
        torch.testing.assert_close(heads.weight[h].T, w.detach(), atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(heads.bias[h], b.detach(), atol=1e-9, rtol=1e-6)


def test_deep_features_are_the_blocks_class_tokens_and_the_mean_patch():
    encoder = nl.load("random:vit_pico")
    deep = extract_block_features(encoder, TEST, blocks=3, crops=0, seed=0, batch_size=32)
    images = list(TEST.images())
    last = encoder.tokens(images)
    torch.testing.assert_close(deep.pooled, last.pooled)
    for i in (1, 2, 3):
        t = encoder.tokens(images, layer=i)
        torch.testing.assert_close(deep.tokens[:, i - 1], t.prefix[:, 0])
    both = deep.features(2, "class+mean")
    expected = torch.cat([deep.tokens[:, 1], deep.tokens[:, 2], last.patches.mean(1)], 1)
    torch.testing.assert_close(both, expected)
    assert deep.features(3, "class").shape == (60, 3 * 64)
    assert torch.equal(deep.features(1, "mean"), deep.patches)


def test_crops_are_random_repeat_with_the_seed_and_know_their_image():
    encoder = nl.load("random:resnet_nano")
    given = {"blocks": 1, "crops": 3, "batch_size": 32}
    a, b = (extract_block_features(encoder, TEST, seed=0, **given) for _ in range(2))
    assert torch.equal(a.pooled, b.pooled) and a.pooled.shape[0] == 180
    assert a.keys.tolist() == list(range(60)) * 3
    assert not torch.equal(a.pooled[:60], a.pooled[60:120])
    assert not torch.equal(extract_block_features(encoder, TEST, seed=1, **given).pooled, a.pooled)


@pytest.mark.parametrize("classifier", ["sgd", "lars", "logistic"])
def test_each_classifier_beats_chance_by_far_on_what_is_linear(classifier):
    given = {"lr": (1e-4, 1e-3, 1e-2)} if classifier == "logistic" else {}
    report = nl.evaluate(
        "linear", "pixels", train="digits", epochs=30, classifier=classifier, **given
    )
    assert report.best["value"] > 0.85, report.best
    assert report.best["setting"].startswith("C=" if classifier == "logistic" else "lr=")


def test_logistic_regression_is_scikit_learns():
    report = nl.evaluate(
        "linear", "pixels", train=TRAIN, test=TEST, classifier="logistic", lr=(0.1,),
        batchnorm=False,
    )  # fmt: skip
    encoder = nl.load("pixels")
    x, z = (encoder.embed(list(s.images())).numpy() for s in (TRAIN, TEST))
    peer = LogisticRegression(C=0.1, max_iter=1000).fit(x, TRAIN.labels)
    assert report.best["value"] == pytest.approx(peer.score(z, TEST.labels), abs=1 / 60)


def test_blocks_and_pools_are_swept_and_the_choice_is_named():
    report = nl.evaluate("linear", "random:vit_pico", blocks=(1, 4), pools=("class", "class+mean"),
                         **GIVEN)  # fmt: skip
    assert "blocks" in report.best["setting"] and "class" in report.best["setting"]
    assert any("and 4 kinds of features" in n for n in report.notes)
    augmented = nl.evaluate("linear", "random:resnet_nano", augmented=2, **GIVEN)
    assert any("2 random crops of each training image" in n for n in augmented.notes)


def test_what_is_held_out_is_no_crop_of_what_is_learnt(monkeypatch):
    """Crops of one image never lie on both sides of the division."""
    from nolabel.protocols import linear

    seen = []

    def watch(x, y, rates, **settings):
        seen.append(len(x))
        return fit_heads(x, y, rates, **settings)

    monkeypatch.setattr(linear, "fit_heads", watch)
    nl.evaluate("linear", "random:resnet_nano", augmented=3, **GIVEN)
    assert seen == [3 * (120 - 10), 3 * 120]  # ten classes of twelve: one image each is held out


def test_wrong_use_is_said_clearly():
    with pytest.raises(UsageError, match="different widths"):
        nl.evaluate("linear", "random:resnet_nano", blocks=(3,), **GIVEN)
    with pytest.raises(UsageError, match="1 to 4"):
        nl.evaluate("linear", "random:vit_pico", blocks=(5,), **GIVEN)
    with pytest.raises(UsageError, match="Unknown pool"):
        Options(pools=("max",))
    with pytest.raises(UsageError, match="Unknown classifier"):
        Options(classifier="svm")
    with pytest.raises(DataError, match="one image a class"):
        nl.evaluate("linear", "pixels", train=Creatures("train", count=10), test=TEST)

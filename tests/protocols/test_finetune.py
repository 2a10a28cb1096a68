"""Fine-tuning: rates by layer, mixing, a copy that learns while the encoder stays, saved whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import nolabel as nl
from nolabel.backbones import build
from nolabel.data.creatures.world import Creatures
from nolabel.data.sources.arrays import Arrays
from nolabel.errors import DataError, UsageError
from nolabel.protocols.classifier import Classifier, load_classifier
from nolabel.protocols.finetune import Options, lr_factor, make_mixing, parameter_groups

FAST = {"epochs": 3, "batch": 32}


def shades(n, seed):
    """Three classes of grey squares in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    pixels = 60 + 60 * labels[:, None, None, None] + rng.integers(-20, 20, (n, 32, 32, 3))
    return Arrays(f"shades {seed}", pixels.clip(0, 255).astype(np.uint8), labels, ("a", "b", "c"))


@pytest.mark.parametrize("name", ["vit_pico", "swin_nano", "resnet_nano"])
def test_early_layers_learn_more_slowly_and_every_parameter_is_in_one_group(name):
    model = Classifier(build(name, image_size=32), 3, "auto")
    found = parameter_groups(model, 1.0, 0.5, 0.05)
    listed = [p for g in found for p in g["params"]]
    assert len(listed) == len({id(p) for p in listed}) == len(list(model.parameters()))
    peak = {id(p): g["peak"] for g in found for p in g["params"]}
    named = dict(model.named_parameters())
    front = next(n for n in named if "patch_embed" in n or n.endswith("conv1.weight"))
    blocks = {"vit_pico": 4, "swin_nano": 6, "resnet_nano": 4}[name]
    assert peak[id(named["head.weight"])] == 1.0
    assert peak[id(named[front])] == pytest.approx(0.5 ** (blocks + 1))
    assert len({g["peak"] for g in found}) == blocks + 2
    for g in found:
        plain = {p.ndim < 2 for p in g["params"]}
        if g["weight_decay"]:
            assert plain == {False}


def test_the_rate_rises_to_one_and_falls_to_zero():
    values = [lr_factor(s, 100, 10) for s in range(100)]
    assert values[0] == 0.1 and values[9] == pytest.approx(1.0) and values[10] == 1.0
    assert values[55] == pytest.approx(0.5) and values[99] < 0.001
    assert values[10:] == sorted(values[10:], reverse=True)


def test_mixed_targets_are_shares_of_two_classes_smoothed():
    o = Options(mixup=0.8, cutmix=1.0, smoothing=0.1)
    torch.manual_seed(0)
    x, y = make_mixing(o, 4)(torch.randn(8, 3, 16, 16), torch.arange(8) % 4)
    assert y.shape == (8, 4)
    torch.testing.assert_close(y.sum(1), torch.ones(8))
    assert float(y.min()) == pytest.approx(0.025) and ((y > 0.03).sum(1) <= 2).all()
    x, y = make_mixing(Options(), 4)(torch.randn(8, 3, 16, 16), torch.arange(8) % 4)
    assert y.shape == (8,)


@pytest.mark.parametrize("name", ["random:vit_pico", "random:resnet_nano"])
def test_it_learns_and_the_encoder_stays_as_it_was(name):
    encoder = nl.load(name)
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    train, test = shades(192, 0), shades(90, 1)
    report = nl.evaluate("finetune", encoder, train=train, test=test, **FAST)
    assert report.best["value"] > 0.8, report.best
    assert "layer_decay 0.75" in report.notes[0]
    for k, v in encoder.backbone.state_dict().items():
        assert torch.equal(v, before[k]), k
    assert not encoder.backbone.training


def test_the_whole_recipe_of_the_paper_runs():
    train, test = shades(64, 0), shades(30, 1)
    report = nl.evaluate(
        "finetune", "random:vit_pico", train=train, test=test, recipe="paper", epochs=1, batch=32,
        pool="mean",
    )  # fmt: skip
    assert "randaugment 9" in report.notes[0] and math.isfinite(report.best["value"])


def test_what_was_saved_classifies_alike(tmp_path):
    train, test = shades(128, 0), shades(60, 1)
    folder = tmp_path / "tuned"
    given = {"train": train, "test": test, **FAST, "save": str(folder)}
    report = nl.evaluate("finetune", "random:vit_pico", **given)
    model, encoder, names = load_classifier(folder)
    with torch.inference_mode():
        guess = model(encoder.prepare(list(test.pixels))).argmax(1).numpy()
    assert names == ("a", "b", "c")
    assert (guess == test.labels).mean() == pytest.approx(report.best["value"])
    with pytest.raises(UsageError, match="holds an encoder already"):
        nl.evaluate("finetune", "random:vit_pico", **given)


def test_the_same_seed_gives_the_same_network():
    train, test = shades(64, 0), shades(60, 1)
    given = {"train": train, "test": test, "epochs": 1, "batch": 32}
    a, b = (nl.evaluate("finetune", "random:vit_pico", **given) for _ in range(2))
    assert a.rows == b.rows


def test_wrong_use_is_said_clearly():
    with pytest.raises(UsageError, match="Unknown recipe"):
        Options(recipe="large")
    with pytest.raises(UsageError, match="epochs must be"):
        Options(epochs=0)
    with pytest.raises(DataError, match="without an image"):
        nl.evaluate("finetune", "random:vit_pico", train=shades(30, 0), test=Creatures("test", count=20))  # fmt: skip # noqa: E501

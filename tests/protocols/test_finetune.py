"""Fine-tuning: rates by layer, mixing, a copy that learns while the encoder stays, saved whole."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import nolabel as nl
from nolabel.backbones import build
from nolabel.cli import main
from nolabel.data.creatures.world import Creatures
from nolabel.data.source import Source
from nolabel.data.sources.arrays import Arrays
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.protocols import run
from nolabel.protocols.classifier import Classifier, load_classifier
from nolabel.protocols.finetune import (
    RECIPES,
    Options,
    fit_classifier,
    lr_factor,
    make_mixing,
    parameter_groups,
)
from nolabel.protocols.report import Report

REPORT = Report(protocol="finetune", encoder="", train="", test="", rows=(), best={})
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
    decayed = {id(p) for g in found if g["weight_decay"] for p in g["params"]}
    tokens = {n for n in named if n.endswith(("cls_token", "pos_embed", "bias_table"))}
    spared = {n for n, p in named.items() if p.ndim > 1 and id(p) not in decayed}
    assert spared == tokens and bool(tokens) is (name != "resnet_nano")


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


def test_the_command_line_follows_the_recipe_that_it_names(monkeypatch, capsys):
    """Defaults that depend on another option are not those of its default."""
    asked = {}
    monkeypatch.setattr(run, "evaluate", lambda *a, **options: asked.update(options) or REPORT)
    given = ["evaluate", "finetune", "--encoder", "pixels", "--train", "x", "--recipe", "paper"]
    assert main([*given, "--epochs", "3", "--scale", "0.2", "1"]) == 0
    asked.pop("image_size")  # of the encoder, not of the protocol
    expected = replace(RECIPES["paper"], epochs=3, scale=(0.2, 1.0))
    assert (
        Options(**asked).resolved
        == expected
        == Options(recipe="paper", epochs=3, scale=(0.2, 1.0)).resolved
    )


@pytest.mark.parametrize("protocol", run.PROTOCOLS)
def test_no_protocols_options_are_resolved_before_they_are_complete(protocol):
    """What the defaults alone say stays a default: it does not look like a user's choice."""
    default = run.options_of(protocol)()
    for f in fields(default):
        if f.default is None:
            assert vars(default)[f.name] is None, f.name


def test_wrong_use_is_said_clearly():
    with pytest.raises(UsageError, match="Unknown recipe"):
        Options(recipe="large")
    with pytest.raises(UsageError, match="epochs must be"):
        Options(epochs=0)
    with pytest.raises(DataError, match="without an image"):
        nl.evaluate("finetune", "random:vit_pico", train=shades(30, 0), test=Creatures("test", count=20))  # fmt: skip # noqa: E501


def test_a_recipe_is_the_one_that_was_asked_for():
    assert vars(Options(recipe="paper").resolved) == vars(RECIPES["paper"])
    assert Options(recipe="paper", epochs=3).resolved.epochs == 3
    given = replace(Options(), recipe="paper")  # as the command line sets it
    assert given.resolved.randaugment == 9 and given.resolved.mixup == 0.8
    with pytest.raises(UsageError, match="from 0 to 10"):
        Options(randaugment=11)


class OnDisk(Source):
    """Some of the shades, which are read one by one; each read is written to a log."""

    def __init__(self, count, log=None, broken=()):
        self.inner, self.log, self.broken = shades(count, 0), log, broken
        self.name, self.labels, self.classes = "disk", self.inner.labels, self.inner.classes

    def __len__(self):
        return len(self.inner)

    def path(self, i, /):
        return f"{i}.png"

    def read(self, i, /, *, sufficient_pixels=None):
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\n")
        if i in self.broken:
            raise BadImage(self.path(i), "cut off")
        return self.inner.read(i)


def test_workers_read_the_images_and_change_nothing(tmp_path):
    log, o = tmp_path / "log", {"epochs": 2, "batch": 16, "recipe": "paper", "drop_path": 0.0}
    encoder = nl.load("random:vit_pico")
    with_workers, _ = fit_classifier(encoder, OnDisk(48, log), 3, Options(**o, workers=2))
    readers = {int(line) for line in log.read_text().split()}
    assert len(readers) == 2 and os.getpid() not in readers
    alone, _ = fit_classifier(encoder, OnDisk(48), 3, Options(**o, workers=0))
    for a, b in zip(with_workers.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_images_that_cannot_be_read_are_left_out_and_named():
    given = {"train": OnDisk(48, broken={5}), "test": shades(12, 1), "epochs": 1, "batch": 16}
    report = nl.evaluate("finetune", "random:vit_pico", **given)
    assert "1 image(s) of disk could not be read" in report.notes[0]
    assert "first: 5.png: cut off" in report.notes[0]


def test_training_in_bfloat16_learns_too():
    given = {"train": shades(192, 0), "test": shades(60, 1), **FAST}
    report = nl.evaluate("finetune", "random:vit_pico", **given, precision="bf16")
    assert report.best["value"] > 0.7

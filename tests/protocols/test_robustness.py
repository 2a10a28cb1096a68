"""Robustness, transfer and all: corruptions, domains, subsets of classes, lines through others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import nolabel as nl
from nolabel.cli import main
from nolabel.data.creatures.world import Creatures
from nolabel.data.open import open_source
from nolabel.data.sources.arrays import Arrays
from nolabel.errors import DataError, UsageError
from nolabel.protocols.all import evaluate_all
from nolabel.protocols.data.corruptions import CORRUPTIONS, corrupted
from nolabel.protocols.robustness import expected_accuracy
from nolabel.protocols.run import PROTOCOLS

IMAGE = Creatures("test", size=64).read(2).image
TRAIN, TEST = Creatures("train", count=200), Creatures("test", count=211)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_corruptions_change_more_and_come_out_the_same_each_time(name):
    errors = []
    for strength in (1, 3, 5):
        x = corrupted(IMAGE, name, strength, (0, 1))
        assert np.array_equal(x, corrupted(IMAGE, name, strength, (0, 1)))
        assert x.shape == IMAGE.shape and x.dtype == np.uint8
        errors.append(np.abs(x.astype(int) - IMAGE).mean())
    assert errors == sorted(errors) and errors[0] > 0


def test_brightness_raises_the_largest_channel_and_contrast_keeps_the_mean():
    x = np.full((4, 4, 3), (100, 50, 25), np.uint8)
    assert corrupted(x, "brightness", 2, (0,))[0, 0].tolist() == [151, 76, 38]
    y = corrupted(IMAGE, "contrast", 1, (0,))
    np.testing.assert_allclose(y.mean((0, 1)), IMAGE.mean((0, 1)), atol=0.5)


def test_a_line_through_baselines_gives_what_is_to_be_expected():
    assert expected_accuracy(0.5, [(0.4, 0.4), (0.8, 0.8)]) == pytest.approx(0.5)
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    line = lambda p: 1 / (1 + np.exp(-(0.7 * logit(p) - 0.3)))  # noqa: E731
    assert expected_accuracy(0.6, [(p, line(p)) for p in (0.3, 0.7, 0.9)]) == pytest.approx(
        line(0.6)
    )


def table(tmp_path, rows):
    """A CSV of solid colours: (class, shade, domain) each."""
    lines = ["path,label,domain"]
    for i, (label, shade, domain) in enumerate(rows):
        Image.fromarray(np.full((32, 32, 3), shade, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{label},{domain}")
    file = tmp_path / "set.csv"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


SHADES = {"dark": 20, "grey": 120, "light": 230}


def test_domains_of_a_table_are_judged_by_one_head_each_among_its_own_classes(tmp_path):
    rng = np.random.default_rng(0)
    shades = [(c, s) for c, s in SHADES.items() for _ in range(20)]
    pixels = np.stack([np.full((32, 32, 3), s + rng.integers(-9, 9), np.uint8) for _, s in shades])
    labels = np.repeat(np.arange(3), 20)
    train = Arrays("train", pixels, labels, tuple(SHADES))
    rows = [(c, s, "near") for c, s in SHADES.items()] * 3
    # In the far domain there is no grey; what looks grey is called dark there.
    rows += [("dark", 118, "far"), ("light", 230, "far")] * 3
    test = open_source(table(tmp_path, rows))
    assert test.domain_names == ("far", "near") and test.domains.tolist() == [1] * 9 + [0] * 6
    report = nl.evaluate("robustness", "pixels", train=train, test=test, corruptions=())
    by = {r["setting"]: r["value"] for r in report.rows if r["metric"] == "top1"}
    assert by["near"] == 1.0
    assert by["far"] == 1.0  # grey is not among its classes, so dark is the nearest
    assert by["test"] == pytest.approx(12 / 15)
    assert any("far: chosen among its own 2 of 3 classes" in n for n in report.notes)


def test_corruptions_domains_and_baselines_stand_in_one_table(few_creatures):
    report = nl.evaluate(
        "robustness", "random:resnet_nano", train=TRAIN, test=TEST, corruptions=("noise", "jpeg"),
        strengths=(1, 5), domains=("again=creatures:test",),
        baselines=("pixels", "random:vit_pico"), epochs=20,
    )  # fmt: skip
    names = [(r["setting"], r["metric"]) for r in report.rows]
    assert names[:2] == [("test", "top1"), ("again", "top1")]
    assert ("noise 5", "top1") in names and ("corruptions, mean", "kept") in names
    assert ("again", "effective") in names and ("jpeg 1", "effective") in names


class Words:
    """A text tower that knows the shades: its vectors are the classes' first letters."""

    def embed(self, texts, batch_size=256):
        index = [list(SHADES).index(next(c for c in SHADES if c in t)) for t in texts]
        return torch.nn.functional.one_hot(torch.tensor(index), 3).float()

    def project(self, values):
        shade = values.mean(1)  # of normalised pixels, dark to light
        edges = torch.tensor([-0.7, 1.0])
        return torch.nn.functional.one_hot(torch.bucketize(shade, edges), 3).float()


def folder(root, name, images):
    """A folder of images in folders of classes; images are (class, shade) each."""
    for i, (label, shade) in enumerate(images):
        (root / name / label).mkdir(parents=True, exist_ok=True)
        array = np.full((32, 32, 3), shade, np.uint8)
        Image.fromarray(array).save(root / name / label / f"{i}.png")
    return f"{name}={root / name}"


def test_six_domains_stand_in_one_table_with_a_zero_shot_column(tmp_path, monkeypatch):
    monkeypatch.setattr("nolabel.protocols.robustness.text_or_none", lambda encoder: Words())
    every = [(c, s + d) for c, s in SHADES.items() for d in (-4, 0, 4)]
    around = np.random.default_rng(0).integers(-9, 10, 20)
    shades = [(c, s + d) for c, s in SHADES.items() for d in around]
    pixels = np.stack([np.full((32, 32, 3), s, np.uint8) for _, s in shades])
    train = Arrays("train", pixels, np.repeat(np.arange(3), 20), tuple(SHADES))
    test = folder(tmp_path, "test", every + [("grey", 230)]).partition("=")[2]
    domains = (
        folder(tmp_path, "same", every),
        folder(tmp_path, "numbered", [("0", 20), ("1", 120), ("2", 230), ("2", 20)]),
        folder(tmp_path, "foreign", [*every, ("teapot", 90), ("vase", 20), ("vase", 30)]),
        folder(tmp_path, "few", [("dark", 118), ("light", 230)]),
        folder(tmp_path, "turned", [("dark", 230), ("light", 20), ("grey", 120)]),
        folder(tmp_path, "half", [("dark", 20), ("dark", 230)]),
    )
    report = nl.evaluate("robustness", "pixels", train=train, test=test, corruptions=(),
                         domains=domains)  # fmt: skip
    by = {(r["setting"], r["metric"]): r["value"] for r in report.rows}
    top1 = {"test": 0.9, "same": 1, "numbered": 0.75, "foreign": 1, "few": 1, "turned": 1 / 3}
    assert {k: by[k, "top1"] for k in top1} == pytest.approx(top1)
    assert {k: by[k, "zero-shot top1"] for k in top1} == pytest.approx({**top1, "few": 1})
    assert by["same", "difference"] == pytest.approx(0.1)
    assert by["numbered", "difference"] == pytest.approx(0.75 - 0.9)
    # Of the two classes of "few", all test images are right among these classes.
    assert by["few", "difference"] == pytest.approx(0.0)
    assert by["turned", "zero-shot difference"] == pytest.approx(1 / 3 - 0.9)
    assert "half" in {setting for setting, _ in by}
    notes = " / ".join(report.notes)
    assert "numbered: its classes are numbers" in notes and "0 is 'dark'" in notes
    assert "foreign: 3 images of 2 classes that train lacks left out: 'teapot', 'vase'" in notes
    assert str(report).count("zero-shot top1") == 7


def test_wrong_use_is_said_clearly(tmp_path):
    for options, message in (
        ({"corruptions": ("rain",)}, "Unknown corruption"), ({"strengths": (6,)}, "from 1 to 5"),
        ({"domains": ("creatures",)}, "NAME=SRC"), ({"baselines": ("pixels",)}, "two or more"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            nl.evaluate("robustness", "pixels", train=TRAIN, test=TEST, **options)
    with pytest.raises(DataError, match="has no class of"):
        other = folder(tmp_path, "other", [("teapot", 9), ("vase", 99)])
        nl.evaluate(
            "robustness", "pixels", train=TRAIN, test=TEST, corruptions=(), domains=(other,)
        )


def test_transfer_has_a_row_for_each_set_and_their_mean(few_creatures, tmp_path, capsys):
    given = ["evaluate", "transfer", "--encoder", "pixels", "--test", "digits,creatures"]
    assert main([*given, "--protocols", "knn", "--json", str(tmp_path / "t.json")]) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [r["setting"] for r in rows][-1] == "mean over sets" and len(rows) == 3
    assert rows[2]["value"] == pytest.approx((rows[0]["value"] + rows[1]["value"]) / 2)
    assert rows[0]["value"] > 0.9  # digits are easy for pixels
    with pytest.raises(UsageError, match="Unknown protocol"):
        nl.evaluate("transfer", "pixels", test="digits", protocols=("vote",))


def test_all_runs_what_suits_and_says_why_the_rest_does_not(monkeypatch):
    some = {k: PROTOCOLS[k] for k in ("knn", "fewshot", "retrieval", "zeroshot", "transfer")}
    monkeypatch.setattr("nolabel.protocols.run.PROTOCOLS", some)
    monkeypatch.setattr("nolabel.protocols.all.PROTOCOLS", some)
    found = evaluate_all("random:vit_pico", TRAIN, TEST)
    assert [r.protocol for r in found.reports] == ["knn", "fewshot", "retrieval"]
    assert {n for n, _ in found.left_out} == {"transfer", "zeroshot"}
    assert "left out: zeroshot" in str(found)

"""`nolabel worth`: accuracies over label budgets, and one honest sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from nolabel import cli
from nolabel.data.open import open_source
from nolabel.tools.worth import Point, budgets, draw, verdict


def point(curve: str, per_class: int, value: float, half: float = 0.01) -> Point:
    labels = 10 * (per_class or 300)
    return Point(curve, labels, per_class, value, value - half, value + half)


def curves(**values: tuple[float, float]) -> list[Point]:
    """Points with 5 labels a class, and with all."""
    return [point(c, k, v) for c, pair in values.items() for k, v in zip((5, 0), pair, strict=True)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"pixels": (0.4, 0.5), "trained": (0.6, 0.7), "supervised": (0.35, 0.9)},
            [
                "Worth it",
                "60.0%",
                "40.0% of pixels",
                "ahead of supervised training up to 5 a class",
            ],
        ),
        (
            {"pixels": (0.4, 0.5), "trained": (0.6, 0.7), "supervised": (0.35, 0.6)},
            ["Worth it", "with all labels"],
        ),
        (
            {"pixels": (0.6, 0.7), "random": (0.4, 0.4), "trained": (0.61, 0.8)},
            ["Not worth it yet", "pixels 60.0%"],
        ),
        (
            {"pixels": (0.4, 0.5), "trained": (0.6, 0.7), "timm:x": (0.8, 0.9)},
            ["Worth it", "published timm:x is better: 80.0%"],
        ),
    ],
    ids=["few labels only", "all the way", "no better than pixels", "a published one is better"],
)
def test_the_sentence_says_what_the_curves_say(values, words):
    said = verdict(curves(**values), [c for c in values if ":" in c])
    for word in words:
        assert word in said


def test_a_gain_within_the_interval_is_none():
    points = [point("pixels", 5, 0.5), point("trained", 5, 0.54, half=0.06)]
    assert verdict(points).startswith("Not worth it yet")


def test_budgets_end_below_the_smallest_class_and_with_all():
    source = open_source("digits:train")
    assert budgets(source) == [5, 10, 20, 50, 100, 0]


@pytest.fixture
def digits(tmp_path):
    """Three digits, 24 of each, as files."""
    source = open_source("digits:train")
    assert source.labels is not None
    for label in range(3):
        folder = tmp_path / f"digits/{label}"
        folder.mkdir(parents=True)
        for i in np.flatnonzero(source.labels == label)[:24]:
            Image.fromarray(source.read(int(i)).image).save(folder / f"{i}.png")
    return str(tmp_path / "digits")


def test_the_command_measures_every_curve_and_takes_a_finished_run_again(digits, tmp_path, capsys):
    def go(*more):
        out = tmp_path / "w"
        assert cli.main([
            "worth", "--data", digits, "--labels", digits, "--out", str(out), "--steps", "2",
            "--backbone", "vit_pico", "--image-size", "16", "--minutes", "0.01",
            "--json", str(tmp_path / "w.json"), *more,
        ]) == 0  # fmt: skip
        return capsys.readouterr(), json.loads((tmp_path / "w.json").read_text())

    said, found = go("--public", "timm:no_such_network")
    assert found["verdict"] in said.out and "5/class" in said.out and "all" in said.out
    curves = {p["curve"] for p in found["points"]}
    assert curves == {"pixels", "random", "trained", "supervised"}
    assert found["notes"][-1].startswith("timm:no_such_network is left out")
    for p in found["points"]:
        assert 0 <= p["low"] <= p["value"] <= p["high"] <= 1
    pixels = {p["per_class"]: p["value"] for p in found["points"] if p["curve"] == "pixels"}
    assert pixels[5] < pixels[0] and pixels[0] > 0.9
    picture = np.asarray(Image.open(tmp_path / "w/worth.png"))
    assert picture.std() > 10
    said, again = go()
    assert "it is taken as it is" in said.err
    frozen = [p for p in found["points"] if p["curve"] != "supervised"]
    assert [p for p in again["points"] if p["curve"] != "supervised"] == frozen


def test_bands_are_drawn():
    wide = [point(c, k, 0.5, half=0.3) for c in ("pixels", "trained") for k in (5, 0)]
    narrow = [point(c, k, 0.5, half=0.0) for c in ("pixels", "trained") for k in (5, 0)]
    assert (draw(wide) != draw(narrow)).any()

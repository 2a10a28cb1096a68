"""The last word of a run: its encoder beside its random start and raw pixels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nolabel.data.creatures.world import Creatures
from nolabel.data.source import Subset
from nolabel.data.sources.items import Items
from nolabel.encoders import load
from nolabel.engine.final_scores import explain, final_scores
from nolabel.engine.monitor.probe import Probe
from nolabel.types import Sample


def run_of(steps: int = 900, images: int = 10_000, minutes: float | None = 10.0) -> Any:
    return SimpleNamespace(images=images, settings=SimpleNamespace(steps=steps, minutes=minutes))


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((0.5, 0.4, 0.7), "Better than both"),
        ((0.5, 0.7, 0.71), "level with the random start"),
        ((0.5, 0.3, 0.49), "not better than raw pixels"),
        ((0.5, 0.7, 0.6), "Not better than the random start"),
    ],
)
def test_each_order_of_the_three_figures_has_its_word(figures, words):
    said = explain(run_of(), *figures, labelled=True)
    assert words in said
    assert ("--minutes 30" in said) == (words != "Better than both")


@pytest.mark.parametrize(
    ("run", "advice"),
    [
        (run_of(), "--minutes 30"),
        (run_of(minutes=None), "--steps 2700"),
        (run_of(steps=9000, images=300), "more images (300 are few)"),
        (run_of(steps=9000), "another method"),
    ],
)
def test_the_advice_fits_the_run(run, advice):
    assert advice in explain(run, 0.5, 0.5, 0.5, labelled=True)


def test_a_run_that_stopped_improving_is_not_advised_to_go_on():
    """Its verdict says that more steps will hardly help; nothing else may say the opposite."""
    for run in (run_of(), run_of(minutes=None)):
        said = explain(run, 0.5, 0.5, 0.5, labelled=True, flat=True)
        assert "longer run" not in said
        assert "another method" in said


def test_the_figures_are_those_of_the_probe_on_the_data_s_labels(tiny_run):
    run = tiny_run("simclr", steps=2)
    source = Creatures("train", size=32, count=120)
    figures, said = final_scores(run, source)
    probe = Probe(source)
    for name in (str(run.folder), f"random:{run.folder}", "pixels"):
        assert f"{probe.accuracy(load(name)):.1%}" in figures
    assert "--probe" not in said


def test_without_labels_self_retrieval_is_told_with_its_limits(tiny_run, monkeypatch):
    run = tiny_run("simclr", steps=2)
    source = Subset(Creatures("train", size=32, count=64), range(40))
    source.labels, source.classes = None, ()
    monkeypatch.setattr("nolabel.engine.monitor.probe.RETRIEVED", 16)
    figures, said = final_scores(run, source)
    assert figures.startswith("self-retrieval, which needs no labels: ")
    assert said.endswith("A few labels say more: --probe SRC.")


class LargeImages(Items):
    """Images of files, of two classes, whose reads are counted."""

    in_memory = False

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        images = [draw.integers(0, 255, (120, 90, 3), np.uint8) for _ in range(60)]
        super().__init__(images)
        self.labels, self.classes = np.arange(60) % 2, ("a", "b")
        self.reads = 0

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        self.reads += 1
        return super().read(i, sufficient_pixels=sufficient_pixels)


def test_large_images_are_read_once_for_the_three_encoders(tiny_run):
    run = tiny_run("simclr", steps=2)
    source = LargeImages()
    final_scores(run, source)
    assert source.reads == len(source)

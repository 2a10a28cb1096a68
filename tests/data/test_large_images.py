"""What keeps images of a source keeps small copies: photographs take 72 MB each."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest

import nolabel as nl
from nolabel.data.decoded import enough_pixels
from nolabel.data.facts import facts_of
from nolabel.data.source import Source
from nolabel.engine.monitor.init_guard import InitGuard
from nolabel.engine.monitor.snapshots import FeatureSnapshots
from nolabel.pictures._shown import SHOWN_PIXELS, shown_sample
from nolabel.tools import bench
from nolabel.tools.show import show
from nolabel.types import Sample
from nolabel.views.plan import View, ViewPlan

HEIGHT, WIDTH = 1500, 2000
BYTES = HEIGHT * WIDTH * 3  # of an image
PLAN = ViewPlan(views=(View(name="v", size=32),))


class Photographs(Source):
    """Twelve large images, each one a new array."""

    name = "photographs"

    def __len__(self) -> int:
        return 12

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        return Sample(image=np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8))


@pytest.fixture
def peak():
    """Bytes that NumPy's arrays took at most since the test began, in images."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / BYTES
    tracemalloc.stop()


def test_the_facts_of_a_source_need_a_few_images_at_a_time(peak):
    facts = facts_of(Photographs())
    assert facts.areas == (HEIGHT * WIDTH,) * 12
    assert all(image.nbytes < BYTES / 10 for image in facts.sample)
    assert peak() < 10  # some are decoded in threads


def test_pictures_of_many_large_images_need_a_few_of_them_at_a_time(peak, monkeypatch):
    monkeypatch.setattr("nolabel.pictures._shown.SHOWN_PIXELS", 200 * 200)
    encoder = nl.load("pixels")
    show("neighbours", encoder, Photographs(), count=12, k=3)
    assert peak() < 20  # reading ahead is bounded by bytes; the picture has 48 tiles


def test_an_image_with_a_mask_keeps_its_size():
    source = Photographs()
    small = shown_sample(source, 1).image
    assert small.shape[0] * small.shape[1] <= SHOWN_PIXELS * 1.01
    assert shown_sample(source, 1, image_size=2000).image.shape == (HEIGHT, WIDTH, 3)
    whole = dataclasses.replace(source.read(1), mask=np.zeros((HEIGHT, WIDTH), np.uint8))
    source.read = lambda i: whole
    assert shown_sample(source, 1) is whole


def test_what_a_run_keeps_of_its_images_suits_the_size_of_its_network(tmp_path):
    encoder = nl.load("random:vit_pico").backbone
    kept = [
        *FeatureSnapshots(tmp_path, Photographs(), PLAN, 32, 10, print).images,
        *InitGuard(tmp_path, encoder, PLAN, Photographs(), None).images,
    ]
    assert len(kept) == 4 + 12
    assert all(k.shape[0] * k.shape[1] <= enough_pixels(32) * 1.05 for k in kept)


def test_a_measured_batch_of_photographs_is_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr(bench, "_FEW_BYTES", 3 * BYTES)
    assert len(bench._few(Photographs(), 12)) == 4
    assert len(bench._few(Photographs(), 2)) == 2

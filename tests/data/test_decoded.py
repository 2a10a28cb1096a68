"""Images that stay in memory once they are decoded: the same batches, from one decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nolabel.data.decoded import Decoded, cache_pixels, decoded_once, shrink
from nolabel.data.loader import make_loader
from nolabel.data.source import Source
from nolabel.errors import BadImage
from nolabel.types import Sample
from nolabel.views import FastViews, View, ViewPlan

PLAN = ViewPlan(views=(View(name="crop", count=2, size=8, scale=(0.25, 1.0)),))


class Counting(Source):
    """Noise of odd sizes; counts how often each image is read."""

    def __init__(self, count: int = 24, side: int = 12, channels: int = 3, dtype: type = np.uint8):
        self.count, self.side, self.channels, self.dtype = count, side, channels, dtype
        self.name, self.reads = "counting", np.zeros(count, int)
        self.labels, self.classes = np.arange(count) % 2, ("a", "b")
        self.block, self.bad = 0, -1

    def __len__(self) -> int:
        return self.count

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        self.reads[i] += 1
        if i == self.bad:
            raise BadImage(self.path(i), "broken")
        rng = np.random.default_rng(i)
        shape = (self.side + i % 3, self.side + i % 5, self.channels)
        return Sample(image=rng.integers(0, np.iinfo(self.dtype).max, shape, self.dtype))

    def read_text(self, i: int, /) -> str | None:
        return f"text {i}"


def batches(source: Source, workers: int = 0, start: int = 0) -> list[torch.Tensor]:
    loader = make_loader(
        source, FastViews(PLAN, 1), seed=1, batch_size=6, start_step=start, total_steps=9,
        workers=workers,
    )  # fmt: skip
    return [batch.views["crop"].clone() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_those_without_a_cache_for_images_that_need_not_shrink(workers):
    plain, cached = Counting(), decoded_once(Counting(), 10_000, 2**20)
    for a, b in zip(batches(plain), batches(cached, workers), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(batches(plain, start=4), batches(cached, start=4), strict=True):
        assert torch.equal(a, b)


def test_each_image_is_read_once():
    source = Counting()
    batches(decoded_once(source, 10_000, 2**20))
    assert (source.reads == 1).all(), "9 steps of 6 are more than two epochs"


def test_forked_workers_fill_one_memory():
    source = Counting()
    cached = Decoded(source, 10_000, 2**20)
    batches(cached, workers=2)
    assert cached.holds(np.arange(len(source)))
    cached.read(3)
    assert not source.reads.any(), "only the workers read files"


def test_images_that_find_no_room_are_read_again():
    source = Counting()
    cached = Decoded(source, 10_000, 1000)
    for a, b in zip(batches(source), batches(cached), strict=True):
        assert torch.equal(a, b)
    assert not cached.holds(np.arange(len(source)))


def test_an_unreadable_image_stays_unreadable():
    source = Counting()
    source.bad = 5
    cached = Decoded(source, 10_000, 2**20)
    for _ in range(2):
        with pytest.raises(BadImage, match="broken"):
            cached.read(5)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (5, np.uint16)])
def test_what_comes_back_is_what_was_read(channels, dtype):
    source = Counting(4, 9, channels, dtype)
    cached = Decoded(source, 10_000, 2**20)
    for _ in range(2):
        for i in range(4):
            sample = cached.read(i)
            np.testing.assert_array_equal(sample.image, source.read(i).image)
            assert sample.image.dtype == dtype and sample.label == i % 2
    assert cached.read(2).text == "text 2"
    assert (cached.block, cached.channels, cached.path(2)) == (0, channels, source.path(2))


def test_large_images_shrink_to_the_pixels_that_suffice():
    image = np.full((300, 200, 3), 77, np.uint8)
    assert shrink(image, 60_000) is image
    small = shrink(image, 15_000)
    assert small.shape == (150, 100, 3) and (small == 77).all()
    deep = shrink(np.full((40, 40, 2), 60_000, np.uint16), 400)
    assert deep.shape == (20, 20, 2) and deep.dtype == np.uint16 and (deep == 60_000).all()


@pytest.mark.parametrize(
    ("side", "images", "kept"),
    [(20, 1000, 1366), (500, 1000, 1366), (500, 2000, 670), (500, 3900, 342), (500, 10**6, None)],
    ids=["small as they are", "all quality fits", "0.7", "half of the side", "nothing fits"],
)
def test_images_are_kept_at_the_best_quality_that_fits(side, images, kept):
    """Memory for 4.1 million bytes; `sufficient_pixels` of the plan: (2 x 8)^2 x 4/3 / 0.25."""
    found = cache_pixels(PLAN, [side**2] * 3, images, 1366 * 1000 * 3, 3)
    assert found == kept


def test_spawned_workers_get_the_source_itself(monkeypatch):
    """They could not share the memory, nor can it be sent to them."""
    monkeypatch.setattr("nolabel.data.decoded.FORKED", False)
    source = Counting()
    assert decoded_once(source, 10_000, 2**20, workers=2) is source
    here = decoded_once(source, 10_000, 2**20)
    for a, b in zip(batches(Counting()), batches(here), strict=True):
        assert torch.equal(a, b)

"""Reading ahead: in order, bounded by bytes, stopped at once."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from nolabel.data.batches import BatchDataset
from nolabel.data.read_ahead import read_ahead
from nolabel.data.source import Source
from nolabel.data.statistics import measure_statistics
from nolabel.encoders.features import chunks
from nolabel.errors import BadImage
from nolabel.types import Sample
from nolabel.views import FastViews
from nolabel.views.plan import View, ViewPlan


class Numbered(Source):
    """Images of one grey level, their index; every fifth is unreadable."""

    def __init__(self, count: int, side: int):
        self.count, self.side = count, side
        self.decoded = 0

    def __len__(self) -> int:
        return self.count

    def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
        if i % 5 == 4:
            raise BadImage(self.path(i), "damaged")
        return Sample(image=np.full((self.side, self.side, 3), i, np.uint8))


def test_results_come_in_order_whatever_their_threads_take():
    def read(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i

    assert list(read_ahead(read, range(40), lambda _: 1)) == list(range(40))


@pytest.mark.parametrize("sizes", [[10] * 50, [1] * 30 + [60] * 20, [500] * 5])
def test_waiting_results_take_no_more_than_the_bound_and_one_for_each_thread(sizes: list[int]):
    lock, alive, most = threading.Lock(), 0, 0

    def read(i: int) -> int:
        nonlocal alive, most
        with lock:
            alive += sizes[i]
            most = max(most, alive)
        return i

    for i in read_ahead(read, range(len(sizes)), lambda i: sizes[i], max_bytes=100):
        time.sleep(0.001)  # slower than reading, so that the threads would run ahead
        with lock:
            alive -= sizes[i]
    assert most <= 100 + 9 * max(sizes)


def test_stopping_early_ends_the_threads():
    started: list[int] = []
    reading = read_ahead(
        lambda i: started.append(i) or i, range(10_000), lambda _: 50, max_bytes=99
    )
    assert next(reading) == 0
    reading.close()
    count = len(started)
    assert count < 600
    time.sleep(0.02)
    assert len(started) == count


def test_an_error_is_raised_when_its_turn_comes():
    def read(i: int) -> int:
        if i == 3:
            raise ZeroDivisionError
        return i

    reading = read_ahead(read, range(5), lambda _: 1)
    assert [next(reading) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(reading)


def test_preparing_in_groups_gives_the_same_batches(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def prepare(images, keys) -> torch.Tensor:
        calls.append(len(images))
        return torch.tensor(
            [[float(i[0, 0, 0]), float(k)] for i, k in zip(images, keys, strict=True)]
        )

    source = Numbered(23, 8)
    whole = list(chunks(source, 10, prepare))
    assert calls == [8, 8, 3]
    monkeypatch.setattr("nolabel.encoders.features._GROUP_BYTES", 3 * 8 * 8 * 3)
    parts = list(chunks(source, 10, prepare))
    assert calls[3:] == [3, 3, 2, 3, 3, 2, 3]
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a.keys, b.keys) and a.skipped == b.skipped
        assert a.x is not None and b.x is not None and torch.equal(a.x, b.x)
        assert (a.x[:, 0] == a.x[:, 1]).all()


def test_a_batch_for_training_made_in_groups_is_the_same_batch(monkeypatch: pytest.MonkeyPatch):
    plan = ViewPlan(views=(View(name="view", count=2, size=4, scale=(0.3, 1.0)),))
    data = BatchDataset(Numbered(20, 8), FastViews(plan), seed=1, batch_size=10)
    whole = data[3, 0]
    monkeypatch.setattr("nolabel.data.batches._GROUP_BYTES", 3 * 8 * 8 * 3)
    made: list[int] = []
    make = data.make_views
    monkeypatch.setattr(data, "make_views", lambda d: made.append(len(d.images)) or make(d))
    parts = data[3, 0]
    assert made == [3, 3, 3, 1]
    assert torch.equal(whole.views["view"], parts.views["view"])
    assert whole.keys is not None and parts.keys is not None and torch.equal(whole.keys, parts.keys)
    assert whole.skipped == parts.skipped and whole.skipped


def test_statistics_of_large_images_are_those_of_all_their_pixels(monkeypatch: pytest.MonkeyPatch):
    class Noise(Source):
        def __len__(self) -> int:
            return 3

        def read(self, i: int, /, *, sufficient_pixels: int | None = None) -> Sample:
            noise = np.random.default_rng(i).integers(0, 65536, (37, 21, 3))
            return Sample(image=noise.astype(np.uint16))

    monkeypatch.setattr("nolabel.data.statistics._BLOCK_PIXELS", 100)
    mean, std = measure_statistics(Noise())
    pixels = np.concatenate([Noise().read(i).image.reshape(-1, 3) for i in range(3)]) / 65535
    assert mean == pytest.approx(pixels.mean(0), abs=2e-6)
    assert std == pytest.approx(pixels.std(0), abs=2e-6)

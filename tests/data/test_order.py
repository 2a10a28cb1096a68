"""The order of images is a stateless permutation."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest

from nolabel.data.order import batch_indices, index_at, replacement, steps_per_epoch

SIZES = [1, 2, 3, 4, 5, 7, 16, 97, 255, 256, 257, 1009, 4096, 10_007]


@pytest.mark.parametrize("n", SIZES)
def test_each_index_comes_once_an_epoch(n):
    for seed, epoch in [(0, 0), (0, 1), (-5, 3), (2**70, 10**9)]:
        order = index_at(seed, epoch, np.arange(n), n)
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_positions_have_random_access_in_any_shape():
    whole = index_at(3, 5, np.arange(1009), 1009)
    assert int(index_at(3, 5, 700, 1009)) == whole[700]
    some = np.array([[5, 4], [1000, 5]])
    np.testing.assert_array_equal(index_at(3, 5, some, 1009), whole[some])


def test_epochs_seeds_and_streams_give_different_orders():
    k = np.arange(1000)
    orders = {
        index_at(seed, epoch, k, 1000, stream=stream).tobytes()
        for seed in range(5)
        for epoch in range(5)
        for stream in range(2)
    }
    assert len(orders) == 50


def test_swapping_seed_and_epoch_gives_another_order():
    k = np.arange(1000)
    assert (index_at(1, 2, k, 1000) != index_at(2, 1, k, 1000)).mean() > 0.99


def test_the_order_never_changes_between_releases():
    # A run resumed with a newer version must continue with the same images.
    assert index_at(0, 0, np.arange(8), 1000).tolist() == [3, 166, 433, 541, 853, 760, 457, 212]
    assert index_at(7, 3, np.arange(5), 5).tolist() == [0, 3, 2, 1, 4]
    assert replacement(0, 0, 3, 1, 50) == 39


@pytest.mark.parametrize("n", [5, 50, 1000])
def test_every_image_is_equally_likely_at_every_position(n):
    """Chi-squared over many epochs, for the first, a middle and the last position."""
    epochs, bins = (300, 5) if n == 5 else (2000, 50)
    for position in (0, n // 2, n - 1):
        seen = np.array([index_at(1, e, position, n) for e in range(epochs)])
        counts = np.bincount(seen * bins // n, minlength=bins)
        expected = epochs / bins
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert chi < bins - 1 + 5 * np.sqrt(2 * (bins - 1))


def test_every_order_of_four_images_is_equally_likely():
    found = Counter(tuple(index_at(1, e, np.arange(4), 4).tolist()) for e in range(600))
    chi = sum((found[p] - 25) ** 2 / 25 for p in itertools.permutations(range(4)))
    assert chi < 23 + 5 * np.sqrt(2 * 23)


def test_the_order_is_not_correlated_with_the_source_or_with_another_epoch():
    n = 20_000
    k = np.arange(n)
    first, second = index_at(0, 0, k, n), index_at(0, 1, k, n)
    assert abs(np.corrcoef(k, first)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 5 / np.sqrt(n)
    assert (np.diff(first) == 1).sum() < 10  # neighbours in the source are separated


def test_a_million_images_take_no_memory_and_little_time():
    start = time.perf_counter()
    for step in range(20):
        batch_indices(0, step, 1024, 1_281_167)
    assert (time.perf_counter() - start) / 20 < 0.1


def test_positions_outside_the_data_are_refused():
    with pytest.raises(ValueError, match="must lie in"):
        index_at(0, 0, 10, 10)
    with pytest.raises(ValueError, match="at least 1"):
        index_at(0, 0, 0, 0)


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (97, 8), (5, 1)])
def test_batches_go_through_the_epochs_and_drop_the_rest(n, batch):
    per_epoch = steps_per_epoch(batch, n)
    for epoch in range(3):
        seen = []
        for b in range(per_epoch):
            got, indices = batch_indices(4, epoch * per_epoch + b, batch, n)
            assert got == epoch
            assert indices.shape == (batch,)
            seen += indices.tolist()
        assert len(set(seen)) == len(seen) == n // batch * batch


def test_no_batch_is_larger_than_the_data():
    with pytest.raises(ValueError, match="no batch of 11"):
        batch_indices(0, 0, 11, 10)


@pytest.mark.parametrize("n", [2, 3, 11])
def test_replacements_are_distinct_and_never_the_image_itself(n):
    for index in range(n):
        standins = [replacement(0, 2, index, attempt, n) for attempt in range(n - 1)]
        assert sorted([*standins, index]) == list(range(n))


def test_replacements_depend_on_the_image_and_the_epoch():
    of_images = {replacement(0, 0, index, 0, 1000) for index in range(100)}
    of_epochs = {replacement(0, epoch, 0, 0, 1000) for epoch in range(100)}
    assert len(of_images) > 80 and len(of_epochs) > 80
    assert replacement(0, 0, 0, 3, 1) == 0

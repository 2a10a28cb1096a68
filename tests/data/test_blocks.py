"""The block order has each image once and keeps neighbours within a window."""

from __future__ import annotations

import numpy as np
import pytest

from nolabel.data.blocks import block_index_at


@pytest.mark.parametrize("n", [1, 2, 7, 16, 97, 1000, 4099])
@pytest.mark.parametrize(("block", "window"), [(1, 1), (4, 3), (16, 16), (1024, 2)])
def test_each_index_comes_once_an_epoch(n, block, window):
    for seed, epoch in [(0, 0), (0, 1), (9, 4)]:
        order = block_index_at(seed, epoch, np.arange(n), n, block, window)
        np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_positions_have_random_access():
    whole = block_index_at(3, 2, np.arange(4099), 4099, 64, 5)
    some = np.array([4098, 0, 17, 2000, 2001, 17])
    np.testing.assert_array_equal(block_index_at(3, 2, some, 4099, 64, 5), whole[some])


def test_a_window_touches_no_more_than_its_blocks():
    order = block_index_at(0, 0, np.arange(64 * 40), 64 * 40, 64, 8)
    for start in range(0, len(order), 64 * 8):
        assert len(np.unique(order[start : start + 64 * 8] // 64)) == 8


def test_a_batch_mixes_all_blocks_of_its_window():
    order = block_index_at(0, 0, np.arange(64 * 40), 64 * 40, 64, 8)
    assert len(np.unique(order[:128] // 64)) == 8


def test_epochs_and_seeds_give_different_orders():
    k = np.arange(1000)
    orders = {block_index_at(s, e, k, 1000, 10, 4).tobytes() for s in range(4) for e in range(4)}
    assert len(orders) == 16


def test_the_order_never_changes_between_releases():
    order = block_index_at(0, 0, np.arange(8), 100, 10, 4)
    assert order.tolist() == [19, 33, 30, 44, 57, 39, 38, 46]

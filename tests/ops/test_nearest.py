"""The largest of each row, against a full sort."""

import pytest
import torch

from nolabel.ops import nearest as module
from nolabel.ops.nearest import largest, nearest


@pytest.mark.parametrize("n", [1, 15, 16, 200, 1000, 1007, 4096])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_largest_and_their_columns_are_those_of_a_full_sort(n, k):
    x = torch.randn(7, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    k = min(k, n)
    values, columns = largest(x, k)
    order = x.sort(dim=1, descending=True)
    assert torch.equal(values, order.values[:, :k])
    assert torch.equal(columns, order.indices[:, :k])


def test_equal_values_are_each_named_once():
    x = torch.zeros(3, 2000)
    x[:, 1990:] = 1.0  # in the columns that fill no group, and in one group beside them
    x[:, [5, 5 + 125, 5 + 250]] = 1.0  # of one group
    values, columns = largest(x, 13)
    assert bool((values == 1).all())
    assert all(len(set(row.tolist())) == 13 for row in columns)
    assert columns.sort(dim=1).values.tolist() == [[5, 130, 255, *range(1990, 2000)]] * 3


def test_long_rows_take_the_short_way_and_short_ones_the_plain_one():
    x = torch.randn(2, 16 * 4 * 3 + 16, generator=torch.Generator().manual_seed(0))
    for k in (3, 4):  # 13 groups: more than four times 3, not than four times 4
        assert torch.equal(largest(x, k)[0], x.topk(k, dim=1).values)


@pytest.mark.parametrize("k", [1, 7, 500])
def test_the_nearest_rows_do_not_depend_on_the_blocks(k, monkeypatch):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, generator=g).double(), torch.randn(30, 4, generator=g).double()
    products = a @ b.T
    order = products.argsort(1, descending=True)[:, :k]
    monkeypatch.setattr(module, "_QUERIES", 8)
    monkeypatch.setattr(module, "_ROWS", 11)
    values, index = nearest(a, b, k)
    assert torch.equal(index, order)
    assert torch.allclose(values, products.gather(1, order), rtol=1e-12)


def test_no_queries_have_no_neighbours():
    values, index = nearest(torch.empty(0, 3), torch.randn(5, 3), 2)
    assert values.shape == index.shape == (0, 2)

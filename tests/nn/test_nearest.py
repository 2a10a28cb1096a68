"""The largest of each row, against a full sort."""

import pytest
import torch

from nolabel.nn import _knn_int8 as int8_module
from nolabel.nn import knn as module
from nolabel.nn._knn_int8 import nearest_int8, quantise
from nolabel.nn._topk import grouped_topk
from nolabel.nn.knn import nearest


@pytest.mark.parametrize("n", [1, 15, 16, 200, 1000, 1007, 4096])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_largest_and_their_columns_are_those_of_a_full_sort(n, k):
    x = torch.randn(7, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    k = min(k, n)
    values, columns = grouped_topk(x, k)
    order = x.sort(dim=1, descending=True)
    assert torch.equal(values, order.values[:, :k])
    assert torch.equal(columns, order.indices[:, :k])


def test_equal_values_are_each_named_once():
    x = torch.zeros(3, 2000)
    x[:, 1990:] = 1.0  # in the columns that fill no group, and in one group beside them
    x[:, [5, 5 + 125, 5 + 250]] = 1.0  # of one group
    values, columns = grouped_topk(x, 13)
    assert bool((values == 1).all())
    assert all(len(set(row.tolist())) == 13 for row in columns)
    assert columns.sort(dim=1).values.tolist() == [[5, 130, 255, *range(1990, 2000)]] * 3


def test_long_rows_take_the_short_way_and_short_ones_the_plain_one():
    x = torch.randn(2, 16 * 4 * 3 + 16, generator=torch.Generator().manual_seed(0))
    for k in (3, 4):  # 13 groups: more than four times 3, not than four times 4
        assert torch.equal(grouped_topk(x, k)[0], x.topk(k, dim=1).values)


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


def sets(kind, n=700, m=60, d=48):
    """Rows and queries of one kind."""
    g = torch.Generator().manual_seed(len(kind))
    x = torch.randn(n + m, d, generator=g)
    if kind == "far from zero":
        x = 20 + x
    elif kind == "of few dimensions":
        x = x[:, :3] @ torch.randn(3, d, generator=g)
    elif kind == "unit":
        x = torch.nn.functional.normalize(x + 1, dim=1)
    elif kind == "one is huge":
        x[5] *= 1000
    elif kind == "one coordinate":
        x[:, 0] *= 100
    elif kind == "duplicates":
        x[: n // 2] = x[0]
    return x[n:], x[:n]


KINDS = ("plain", "far from zero", "of few dimensions", "unit", "one is huge", "one coordinate",
         "duplicates")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_product_of_bytes_is_off_by_more_than_the_bound(kind):
    queries, rows = sets(kind)
    c = quantise(queries, rows)
    products = c.queries.double() @ c.rows.double().T * c.unit + c.shift[:, None]
    off = (products - queries.double() @ rows.double().T).abs()
    assert bool((off <= c.error[:, None]).all())
    if kind in ("plain", "unit", "far from zero"):  # and the bound is not too loose
        assert float(c.error.max()) < 0.2 * float((queries @ rows.T).std(1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_is_sure_is_right(kind, monkeypatch):
    queries, rows = sets(kind)
    c, k = quantise(queries, rows), 5
    monkeypatch.setattr(int8_module, "_QUERIES", 32)
    monkeypatch.setattr(int8_module, "_ROWS", 256)
    values, index, sure = nearest_int8(queries, rows, c, torch.arange(len(queries)), k, 60)
    exact = (queries.double() @ rows.double().T).topk(k, dim=1).values
    own = (queries.double()[:, None] * rows.double()[index]).sum(-1)
    assert torch.allclose(own[sure], exact[sure], rtol=1e-5, atol=1e-5)
    assert torch.allclose(values.double(), own, rtol=1e-4, atol=1e-4)
    if kind in ("plain", "unit"):
        assert float(sure.float().mean()) > 0.9
    if kind == "duplicates":  # any duplicate may be among the nearest, so no proof is possible
        assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_rows_by_bytes_are_those_by_floats(kind, monkeypatch):
    queries, rows = sets(kind)
    expected = nearest(queries, rows, 4)[0]
    monkeypatch.setattr(module, "int8_is_faster", lambda *given: True)
    monkeypatch.setattr(module, "_QUERIES", 16)
    values, index = nearest(queries, rows, 4)
    assert torch.allclose(values, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    own = (queries[:, None] * rows[index]).sum(-1)
    assert torch.allclose(values, own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))


def test_where_bytes_say_nothing_floats_are_asked(monkeypatch):
    monkeypatch.setattr(module, "int8_is_faster", lambda *given: True)
    rows, queries = torch.zeros(300, 8), torch.randn(20, 8, generator=torch.Generator())
    assert quantise(queries, rows) is None
    assert torch.equal(nearest(queries, rows, 3)[0], torch.zeros(20, 3))
    rows = rows.clone()
    rows[7, 3] = float("nan")
    assert quantise(queries, rows) is None


def test_bytes_are_for_large_matrices_of_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    queries, rows = torch.empty(2048, 192), torch.empty(2**14, 192)
    assert module.int8_is_faster(queries, rows, 20)
    assert not module.int8_is_faster(queries, rows, 33)
    assert not module.int8_is_faster(queries[1:], rows, 20)
    assert not module.int8_is_faster(queries, rows[1:], 20)
    assert not module.int8_is_faster(queries[:, 1:], rows[:, 1:], 20)
    assert not module.int8_is_faster(queries.double(), rows.double(), 20)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert not module.int8_is_faster(queries, rows, 20)

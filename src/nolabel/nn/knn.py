"""Exact nearest neighbours by inner product."""

from __future__ import annotations

import torch
from torch import Tensor

from nolabel.nn._knn_int8 import nearest_int8, quantise
from nolabel.nn._topk import grouped_topk

# Queries and rows of one block of products, 64 MB: large enough for full speed.
_QUERIES, _ROWS = 512, 2**15
# Where int8 is faster, measured with k = 20: fewer queries do not pay for quantising the rows,
# narrow rows have cheap products, and more neighbours need more candidates.
_MIN_QUERIES, _MIN_ROWS, _MIN_WIDTH, _MAX_NEIGHBOURS = 2048, 2**14, 192, 32
_CANDIDATES = 8  # compared exactly, for each neighbour
_MIN_PROVEN = (
    0.7  # share of the first block that int8 must prove, else all others are searched exactly
)


@torch.no_grad()
def nearest(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows with the largest inner product with each query; exact, without gradient.

    Args:
        queries: float [M, D].
        rows: float [N, D], of the same dtype and device.
        k: at least 1.

    Returns:
        products [M, min(k, N)], largest first, and the numbers of the rows, int64 of that shape.
    """
    m, n = len(queries), len(rows)
    k = min(k, n)
    quantised = quantise(queries, rows) if int8_is_faster(queries, rows, k) else None
    if quantised is None:
        return _nearest_exact(queries, rows, k)
    values, index = queries.new_empty(m, k), torch.empty(m, k, dtype=torch.int64)
    numbers, unanswered = torch.arange(m), torch.ones(m, dtype=torch.bool)
    for which in (numbers[:_QUERIES], numbers[_QUERIES:]):
        values[which], index[which], proven = nearest_int8(
            queries, rows, quantised, which, k, min(_CANDIDATES * k, n)
        )
        unanswered[which] = ~proven
        if proven.float().mean() < _MIN_PROVEN:
            break
    if unanswered.any():
        values[unanswered], index[unanswered] = _nearest_exact(queries[unanswered], rows, k)
    return values, index


def int8_is_faster(queries: Tensor, rows: Tensor, k: int) -> bool:
    """Whether int8 products pay: for large float32 matrices on a CPU with VNNI instructions.

    Args:
        queries: [M, D].
        rows: [N, D].
        k: neighbours of each query.
    """
    large = len(queries) >= _MIN_QUERIES and len(rows) >= _MIN_ROWS and rows.shape[1] >= _MIN_WIDTH
    float32_on_cpu = rows.device.type == "cpu" and rows.dtype == queries.dtype == torch.float32
    vnni_supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    supported = hasattr(torch, "_int_mm") and bool(vnni_supported())
    return large and float32_on_cpu and k <= _MAX_NEIGHBOURS and supported


def _nearest_exact(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    m, n = len(queries), len(rows)
    values, index = queries.new_empty(m, k), torch.empty(m, k, dtype=torch.int64).to(rows.device)
    buffer = queries.new_empty(min(m, _QUERIES), min(n, _ROWS))  # reused: allocating is slow
    for at in range(0, m, _QUERIES):
        block_of_queries = queries[at : at + _QUERIES]
        parts = []
        for start in range(0, n, _ROWS):
            block = rows[start : start + _ROWS]
            shape = (len(block_of_queries), len(block))
            products = buffer.flatten()[: shape[0] * shape[1]].view(shape)
            torch.mm(block_of_queries, block.T, out=products)
            best, columns = grouped_topk(products, min(k, len(block)))
            parts.append((best, columns + start))
        best, columns = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        best, order = best.topk(k, dim=1)
        values[at : at + _QUERIES] = best
        index[at : at + _QUERIES] = columns.gather(1, order)
    return values, index

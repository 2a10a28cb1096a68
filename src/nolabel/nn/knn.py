"""The rows that are most similar to each query, among many."""

from __future__ import annotations

import torch
from torch import Tensor

from nolabel.nn._knn_int8 import coarse, nearest_by_bytes
from nolabel.nn._largest import largest

# Queries and rows whose similarities are held at once, 64 MB: whatever the number of rows, the
# product runs at full speed.
_QUERIES, _ROWS = 512, 2**15
# From where on bytes are faster, measured with k = 20: with fewer queries the rounding of the rows
# does not pay, with narrower rows the products are cheap, and more neighbours need more candidates.
_MANY_QUERIES, _MANY_ROWS, _WIDE, _FEW = 2048, 2**14, 192, 32
_CANDIDATES = 8  # for each neighbour
_ENOUGH = 0.7  # of the first queries must be answered by bytes, or the others are not tried


@torch.no_grad()
def nearest(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows with the largest product with each query: products and numbers, both
    [M, min(k, N)], largest first.

    Args:
        queries: float [M, D].
        rows: float [N, D].
        k: at least 1.
    """
    m, n = len(queries), len(rows)
    k = min(k, n)
    rounded = coarse(queries, rows) if bytes_pay(queries, rows, k) else None
    if rounded is None:
        return _nearest(queries, rows, k)
    values, index = queries.new_empty(m, k), torch.empty(m, k, dtype=torch.int64)
    asked, open_ = torch.arange(m), torch.ones(m, dtype=torch.bool)
    for which in (asked[:_QUERIES], asked[_QUERIES:]):
        found = nearest_by_bytes(queries, rows, rounded, which, k, min(_CANDIDATES * k, n))
        values[which], index[which], sure = found
        open_[which] = ~sure
        if sure.float().mean() < _ENOUGH:
            break
    if open_.any():
        values[open_], index[open_] = _nearest(queries[open_], rows, k)
    return values, index


def bytes_pay(queries: Tensor, rows: Tensor, k: int) -> bool:
    """Whether products of bytes are worth their while: large float32 matrices on a processor that
    has instructions for them (VNNI)."""
    large = len(queries) >= _MANY_QUERIES and len(rows) >= _MANY_ROWS and rows.shape[1] >= _WIDE
    plain = rows.device.type == "cpu" and rows.dtype == queries.dtype == torch.float32
    able = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return large and plain and k <= _FEW and hasattr(torch, "_int_mm") and bool(able())


def _nearest(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    m, n = len(queries), len(rows)
    values, index = queries.new_empty(m, k), torch.empty(m, k, dtype=torch.int64).to(rows.device)
    room = queries.new_empty(min(m, _QUERIES), min(n, _ROWS))  # for all: fresh memory is slow
    for at in range(0, m, _QUERIES):
        some = queries[at : at + _QUERIES]
        found = []
        for start in range(0, n, _ROWS):
            block = rows[start : start + _ROWS]
            products = room.flatten()[: len(some) * len(block)].view(len(some), len(block))
            torch.mm(some, block.T, out=products)
            best, columns = largest(products, min(k, len(block)))
            found.append((best, columns + start))
        best, columns = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        best, order = best.topk(k, dim=1)
        values[at : at + _QUERIES] = best
        index[at : at + _QUERIES] = columns.gather(1, order)
    return values, index

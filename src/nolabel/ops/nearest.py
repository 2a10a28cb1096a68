"""The rows that are most similar to each query, among many."""

from __future__ import annotations

import torch
from torch import Tensor

# Queries and rows whose similarities are held at once, 64 MB: whatever the number of rows, the
# product runs at full speed.
_QUERIES, _ROWS = 512, 2**15
_GROUPS = 16  # columns that share a maximum; measured best of 8 to 60, rows of 60,000, k = 20


@torch.no_grad()
def nearest(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows with the largest product with each query: products and numbers, both
    [M, min(k, N)], largest first.

    Args:
        queries: float [M, D].
        rows: float [N, D].
        k: At least 1.
    """
    m, n = len(queries), len(rows)
    k = min(k, n)
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


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, both [M, k], largest first.

    As `x.topk(k, dim=1)`, up to the order of equal values, and several times faster where rows are
    long: the k largest lie in the k groups of columns whose maxima are largest, and a maximum is
    cheaper than a selection.

    Args:
        x: float [M, N].
        k: At most N.
    """
    n = x.shape[1]
    width = n // _GROUPS  # groups; column c < width * _GROUPS is in group c % width
    if width <= 4 * k:  # little would be left out
        best = x.topk(k, dim=1)
        return best.values, best.indices
    whole = x[:, : width * _GROUPS].unflatten(1, (_GROUPS, width))
    groups = whole.amax(1).topk(k, dim=1, sorted=False).indices  # [M, k]
    rows = groups[:, None].expand(-1, _GROUPS, -1)
    tail = torch.arange(width * _GROUPS, n, device=x.device).expand(len(x), -1)
    found = torch.cat([whole.gather(2, rows).flatten(1), x[:, width * _GROUPS :]], 1)
    offsets = torch.arange(_GROUPS, device=x.device)[None, :, None] * width
    columns = torch.cat([(groups[:, None] + offsets).flatten(1), tail], 1)
    values, at = found.topk(k, dim=1)
    return values, columns.gather(1, at)

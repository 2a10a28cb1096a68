"""Nearest neighbours by int8 products, with a proof for each query that the result is exact.

CPUs multiply int8 about four times as fast as float32. All products are computed in int8 first; the
rows with the largest ones, the candidates, are compared in float32; a bound on the quantisation
error says for each query whether another row could have a larger product. If so, the caller
searches that query exactly.

For rows x and a query q, with m the mean of the rows, x' = x - m and q' = q - m:

    q . x  =  q . m  +  m . x'  +  q' . x'

The first term is the same for all rows. The last is computed from quantised vectors [.], after a
random rotation, which gives all coordinates about the same size and makes the quantisation step
small compared with them; subtracting the mean keeps it small compared with the differences among
rows. The second term is in additional columns, as digits in base 127. By the triangle and the
Cauchy-Schwarz inequality

    |q' . x' - [q'] . [x']|  <=  |q' - [q']| |x'|  +  |[q']| |x' - [x']|
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nolabel.nn._topk import grouped_topk

INT8_MAX = 127  # largest int8
_BLOCK = 4096  # rows rotated in one product
_QUERIES, _ROWS = 128, 2**16  # of one block of products, 32 MB
_COMPARED = 32  # queries whose candidates are gathered at once, to fit into the CPU's cache
SLACK = 2e-6  # bound on float32 rounding, as a share of the largest product


@dataclass(frozen=True)
class Quantised:
    """Quantised rows and queries: q . x = unit * (int8 product) + shift +- error.

    Attributes:
        rows, queries: int8 [N, W] and [M, W], W a multiple of 16.
        unit: the value of an int8 product of 1.
        shift: float [M], added to a query's products.
        error: float [M], bound on the error of a query's products.
    """

    rows: Tensor
    queries: Tensor
    unit: float
    shift: Tensor
    error: Tensor


@torch.no_grad()
def quantise(queries: Tensor, rows: Tensor, seed: int = 0) -> Quantised | None:
    """Quantises queries and rows.

    Args:
        queries: float32 [M, D].
        rows: float32 [N, D].
        seed: of the random rotation.

    Returns:
        None if quantising is of no use: zero or non-finite values, or more columns for the digits
        than D.
    """
    d = rows.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    mean = rows.mean(0)
    centre = mean @ rotation
    offsets = rows @ mean - mean @ mean  # m . x'
    mid = (offsets.max() + offsets.min()) / 2

    def rotated(x: Tensor) -> Tensor:
        return torch.addmm(-centre, x, rotation)

    steps = [
        max(float(rotated(part).abs().max()) for part in x.split(_BLOCK)) / INT8_MAX
        for x in (rows, queries)
    ]
    if not all(0 < s < float("inf") for s in steps):
        return None
    unit = steps[0] * steps[1]
    units = (offsets - mid) / unit
    digits = int(units.abs().max() / INT8_MAX**2) + 1
    if not digits < d:  # also if digits is NaN
        return None
    width = -(-(d + digits + 1) // 16) * 16

    def quantised(x: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """int8 [n, W], and the norms of the exact rows, of the rounded ones and of the error."""
        out = torch.zeros(len(x), width, dtype=torch.int8)
        lengths = torch.empty(3, len(x))
        for first in range(0, len(x), _BLOCK):
            exact = rotated(x[first : first + _BLOCK])
            rounded = (exact / step).round_()
            out[first : first + _BLOCK, :d] = rounded.to(torch.int8)
            rounded *= step
            for row, z in zip(lengths, (exact, rounded, exact - rounded), strict=True):
                row[first : first + _BLOCK] = z.norm(dim=1)
        return out, lengths[0], lengths[1], lengths[2]

    int8_rows, norm_of_rows, _, error_of_rows = quantised(rows, steps[0])
    int8_queries, _, norm, error_of_queries = quantised(queries, steps[1])
    # m . x' in units: a sum of `digits` int8 numbers times 127, and a remainder below 64.
    remaining = (units / INT8_MAX).round()
    for i in range(digits):
        digit = remaining.clamp(-INT8_MAX, INT8_MAX)
        int8_rows[:, d + i] = digit.to(torch.int8)
        remaining -= digit
    int8_rows[:, d + digits] = (
        (units - (units / INT8_MAX).round() * INT8_MAX).round().to(torch.int8)
    )
    int8_queries[:, d : d + digits] = INT8_MAX
    int8_queries[:, d + digits] = 1
    size = queries.norm(dim=1) * rows.norm(dim=1).max()
    error = error_of_queries * norm_of_rows.max() + norm * error_of_rows.max() + unit + SLACK * size
    shift = queries @ mean + mid
    return Quantised(int8_rows, int8_queries, unit, shift, error)


@torch.no_grad()
def nearest_int8(
    queries: Tensor, rows: Tensor, c: Quantised, which: Tensor, k: int, candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k candidates with the largest inner product with each of some queries.

    Args:
        queries: float32 [M, D].
        rows: float32 [N, D].
        c: both, quantised.
        which: int64 [S], numbers of the queries to search.
        k: at most `candidates`.
        candidates: rows compared in float32 for each query, at most N.

    Returns:
        products [S, k], largest first; numbers of the rows int64 [S, k]; proven bool [S]: whether
        no other row can have a larger product than the last of them.
    """
    candidate_rows = torch.empty(len(which), candidates, dtype=torch.int64)
    smallest_candidate = torch.empty(len(which), dtype=torch.int32)
    buffer = torch.empty(min(len(which), _QUERIES) * min(len(rows), _ROWS), dtype=torch.int32)
    for first in range(0, len(which), _QUERIES):
        block_of_queries, parts = c.queries[which[first : first + _QUERIES]], []
        for start in range(0, len(rows), _ROWS):
            block = c.rows[start : start + _ROWS]
            m, n = len(block_of_queries), len(block)
            products = buffer[: m * n].view(m, n)
            torch._int_mm(block_of_queries, block.T, out=products)
            values, columns = grouped_topk(products, min(candidates, len(block)))
            parts.append((values, columns + start))
        values, columns = parts[0]
        if len(parts) > 1:
            values, columns = (torch.cat(p, 1) for p in zip(*parts, strict=True))
            values, order = values.topk(candidates, dim=1)
            columns = columns.gather(1, order)
        candidate_rows[first : first + _QUERIES] = columns
        smallest_candidate[first : first + _QUERIES] = values[:, -1]
    products = torch.empty(len(which), candidates)
    row_buffer = rows.new_empty(_COMPARED * candidates, rows.shape[1])
    for first in range(0, len(which), _COMPARED):
        few_queries = queries[which[first : first + _COMPARED]]
        few_rows = candidate_rows[first : first + _COMPARED]
        gathered = row_buffer[: few_rows.numel()]
        torch.index_select(rows, 0, few_rows.flatten(), out=gathered)
        dots = gathered.view(*few_rows.shape, -1) @ few_queries[:, :, None]
        products[first : first + _COMPARED] = dots[..., 0]
    exact, order = products.topk(k, dim=1)
    largest_left_out = smallest_candidate * c.unit + c.shift[which]
    return exact, candidate_rows.gather(1, order), exact[:, -1] >= largest_left_out + c.error[which]

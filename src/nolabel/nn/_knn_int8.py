"""The most similar rows by products of one-byte numbers, proven to be the right ones.

Processors multiply bytes about four times as fast as floats. So all products are taken of rounded
rows first; the candidates, those largest by them, are compared exactly; and a bound on what the
rounding can have done says for each query whether any other row could be better. Where that
cannot be excluded, the caller searches exactly.

For rows x and a query q with m the mean of the rows, x' = x - m, q' = q - m:

    q . x  =  q . m  +  m . x'  +  q' . x'

The first term is the same for all rows. The last is taken of rounded numbers, after a random
rotation, which gives all coordinates about the same size, so that a step of the rounding is small
beside them; subtracting the mean keeps it small beside what tells rows from each other. The second
stands in further columns, as digits. By the triangle inequality and Cauchy and Schwarz

    |q' . x' - [q'] . [x']|  <=  |q' - [q']| |x'|  +  |[q']| |x' - [x']|
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nolabel.nn._largest import largest

MOST = 127  # of a byte
_BLOCK = 4096  # rows that are rotated at once
_QUERIES, _ROWS = 128, 2**16  # whose products are held at once, 32 MB
_COMPARED = 32  # queries whose candidates are gathered at once: those fit into the cache
SLACK = 2e-6  # of the largest product: what the rounding of floats can do


@dataclass(frozen=True)
class Coarse:
    """Rows and queries as bytes.

    Attributes:
        rows, queries: int8 [N, W] and [M, W].
        unit: what a product of one is worth.
        shift: float [M], what is to be added to the products.
        error: float [M], by how much a product can be off.
    """

    rows: Tensor
    queries: Tensor
    unit: float
    shift: Tensor
    error: Tensor


@torch.no_grad()
def coarse(queries: Tensor, rows: Tensor, seed: int = 0) -> Coarse | None:
    """Rounds float queries [M, D] and rows [N, D]; None where the digits would take more columns
    than the rows' own."""
    d = rows.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    mean = rows.mean(0)
    centre = mean @ rotation
    offsets = rows @ mean - mean @ mean  # m . x'
    middle = (offsets.max() + offsets.min()) / 2

    def turned(x: Tensor) -> Tensor:
        return torch.addmm(-centre, x, rotation)

    steps = [
        max(float(turned(some).abs().max()) for some in x.split(_BLOCK)) / MOST
        for x in (rows, queries)
    ]
    if not all(0 < s < float("inf") for s in steps):
        return None
    unit = steps[0] * steps[1]
    places = (offsets - middle) / unit
    digits = int(places.abs().max() / MOST**2) + 1
    if not digits < d:  # also where that is no number
        return None
    width = -(-(d + digits + 1) // 16) * 16

    def rounded(x: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bytes, and the lengths of what was rounded, of the outcome and of their difference."""
        out = torch.zeros(len(x), width, dtype=torch.int8)
        lengths = torch.empty(3, len(x))
        for at in range(0, len(x), _BLOCK):
            exact = turned(x[at : at + _BLOCK])
            whole = (exact / step).round_()
            out[at : at + _BLOCK, :d] = whole.to(torch.int8)
            whole *= step
            for row, z in zip(lengths, (exact, whole, exact - whole), strict=True):
                row[at : at + _BLOCK] = z.norm(dim=1)
        return out, lengths[0], lengths[1], lengths[2]

    bytes_of_rows, long, _, off = rounded(rows, steps[0])
    bytes_of_queries, _, own, own_off = rounded(queries, steps[1])
    # A number of units as a sum of `digits` bytes times 127, and a remainder below 64.
    tall = (places / MOST).round()
    for i in range(digits):
        some = tall.clamp(-MOST, MOST)
        bytes_of_rows[:, d + i] = some.to(torch.int8)
        tall -= some
    bytes_of_rows[:, d + digits] = (places - (places / MOST).round() * MOST).round().to(torch.int8)
    bytes_of_queries[:, d : d + digits] = MOST
    bytes_of_queries[:, d + digits] = 1
    size = queries.norm(dim=1) * rows.norm(dim=1).max()
    error = own_off * long.max() + own * off.max() + unit + SLACK * size
    shift = queries @ mean + middle
    return Coarse(bytes_of_rows, bytes_of_queries, unit, shift, error)


@torch.no_grad()
def nearest_by_bytes(
    queries: Tensor, rows: Tensor, c: Coarse, which: Tensor, k: int, candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k rows with the largest product with each of some queries, as far as candidates tell.

    Args:
        queries: float [M, D].
        rows: float [N, D].
        c: what `coarse` made of them.
        which: numbers of the S queries that are asked.
        k: at most `candidates`.
        candidates: rows that are compared exactly, at most N.

    Returns:
        Products and numbers, both [S, k], largest first, and bool [S]: whether no other row can
        have a larger product than the last of them.
    """
    found = torch.empty(len(which), candidates, dtype=torch.int64)
    least = torch.empty(len(which), dtype=torch.int32)
    held = torch.empty(min(len(which), _QUERIES) * min(len(rows), _ROWS), dtype=torch.int32)
    for at in range(0, len(which), _QUERIES):
        own, parts = c.queries[which[at : at + _QUERIES]], []
        for start in range(0, len(rows), _ROWS):
            block = c.rows[start : start + _ROWS]
            products = held[: len(own) * len(block)].view(len(own), len(block))
            torch._int_mm(own, block.T, out=products)
            values, columns = largest(products, min(candidates, len(block)))
            parts.append((values, columns + start))
        values, columns = parts[0]
        if len(parts) > 1:
            values, columns = (torch.cat(p, 1) for p in zip(*parts, strict=True))
            values, order = values.topk(candidates, dim=1)
            columns = columns.gather(1, order)
        found[at : at + _QUERIES], least[at : at + _QUERIES] = columns, values[:, -1]
    products = torch.empty(len(which), candidates)
    room = rows.new_empty(_COMPARED * candidates, rows.shape[1])
    for at in range(0, len(which), _COMPARED):
        mine, near = queries[which[at : at + _COMPARED]], found[at : at + _COMPARED]
        gathered = room[: near.numel()]
        torch.index_select(rows, 0, near.flatten(), out=gathered)
        compared = gathered.view(*near.shape, -1) @ mine[:, :, None]
        products[at : at + _COMPARED] = compared[..., 0]
    exact, order = products.topk(k, dim=1)
    left_out = least * c.unit + c.shift[which]
    return exact, found.gather(1, order), exact[:, -1] >= left_out + c.error[which]

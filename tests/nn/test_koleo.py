"""KoLeo: official numbers, of one process and of several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from nolabel.nn.koleo import koleo

ORACLE = Path(__file__).parents[1] / "oracles" / "koleo_grouped.safetensors"
RANKS = 4  # of three rows each


@pytest.mark.parametrize("rows", [3, 6, 12])
def test_nearest_rows_of_a_group_match_the_official_numbers(rows):
    """A group is all that one process has."""
    o = load_file(ORACLE)
    x = o["x"].requires_grad_()
    loss = torch.stack([koleo(part) for part in x.split(rows)]).mean()
    (grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(loss, o[f"group{rows}.top1.loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, o[f"group{rows}.top1.grad"], rtol=1e-4, atol=1e-6)


def test_neighbours_among_the_rows_of_all_processes_match_the_official_numbers(as_process):
    o = load_file(ORACLE)
    x = o["x"].requires_grad_()
    unit = F.normalize(x, dim=-1, eps=1e-8)
    losses = []
    for rank, rows in enumerate(x.chunk(RANKS)):
        with as_process(rank, (F.normalize(rows, dim=-1, eps=1e-8), unit)):
            losses.append(koleo(rows))
    loss = torch.stack(losses)
    (grad,) = torch.autograd.grad(loss.mean(), x)
    torch.testing.assert_close(loss, o["group12.top1.per_rank"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, o["group12.top1.grad"], rtol=1e-4, atol=1e-6)


def test_a_single_row_has_no_neighbour():
    x = torch.ones(1, 4, requires_grad=True)
    koleo(x).backward()
    assert x.grad.tolist() == [[0.0] * 4]

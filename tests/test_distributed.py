"""Sums and gathers over two processes on the CPU, and without a process group."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from nolabel import distributed
from nolabel.engine import parallel
from nolabel.engine.heartbeat import Heartbeat
from nolabel.engine.step import NonFiniteGuard
from nolabel.errors import UsageError

WORLD, B, D = 2, 6, 5


def test_without_a_process_group_everything_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather_with_grad(x) is x
    for reduce in (distributed.sum, distributed.mean):
        assert torch.equal(reduce(x), x)
        assert not reduce(x).requires_grad
    distributed.barrier()


def data() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, WORLD * B, 7, generator=g, dtype=torch.float64)
    return x[0], x[1], torch.randn(7, D, generator=g, dtype=torch.float64)


def contrast(z1: Tensor, z2: Tensor, all1: Tensor, all2: Tensor, offset: int) -> Tensor:
    """NT-Xent of the images of one process against those of all."""
    total, loss = len(all1), torch.zeros((), dtype=z1.dtype)
    for mine, same, other in ((z1, all1, all2), (z2, all2, all1)):
        rows = torch.arange(len(mine))
        near = mine @ same.T / 0.5
        near = near.masked_fill(torch.eye(total, dtype=torch.bool)[offset + rows], -torch.inf)
        logits = torch.cat([mine @ other.T / 0.5, near], 1)
        loss = loss + torch.nn.functional.cross_entropy(logits, offset + rows) / 2
    return loss


def embed(x: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x @ w, dim=-1)


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD
    )
    out = {}
    x1, x2, w = data()
    mine = slice(rank * B, (rank + 1) * B)
    w.requires_grad_()
    z1, z2 = embed(x1[mine], w), embed(x2[mine], w)
    gather = distributed.gather_with_grad
    all1, all2 = gather(z1), gather(z2)
    loss = contrast(z1, z2, all1, all2, distributed.rank() * B)
    loss.backward()
    out["order"] = torch.stack([all1.detach(), all2.detach()])
    out["loss"], out["grad"] = distributed.mean(loss), distributed.mean(w.grad)  # as DDP does

    # The gathered tensor is used twice in a sum, so autograd hands one gradient to two readers.
    a = torch.full((1, 2), float(rank + 1), dtype=torch.float64, requires_grad=True)
    b = torch.zeros(WORLD, 2, dtype=torch.float64, requires_grad=True)
    (gather(a) + b).mul(3.0).sum().backward()
    out["shared_a"], out["shared_b"] = a.grad, b.grad

    view = torch.arange(6.0).reshape(2, 3).T + rank  # not contiguous
    out["view"] = gather(view)
    x = torch.tensor([float(rank + 1)], requires_grad=True)
    total = distributed.sum(x)
    out["sum"], out["mean"], out["kept"] = total, distributed.mean(x), x.detach()
    assert not total.requires_grad
    assert (distributed.rank(), distributed.world_size()) == (rank, WORLD)
    distributed.barrier()

    agreement(rank)
    hang(rank)
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def agreement(rank: int) -> None:
    """Collectives of flags and Python objects."""
    mean, flags = parallel.reduce_loss_and_flags(torch.tensor(2.0 * rank), rank == 1, False)
    assert float(mean) == 1.0
    assert flags == [True, False]
    # A NaN loss of one process is the result on all, so that all skip the step.
    loss, _ = parallel.reduce_loss_and_flags(torch.tensor(float("nan") if rank else 1.0), False)
    assert not NonFiniteGuard().check(loss, torch.ones(()))
    assert parallel.all_reduce_mean({"a": float(rank), "b": torch.tensor(4)}) == {
        "a": 0.5,
        "b": 4.0,
    }
    assert parallel.broadcast_object({"who": rank}) == {"who": 0}
    assert parallel.all_gather_objects((rank, "x")) == (0, "x", 1, "x")
    done = []
    assert parallel.rank0_first(lambda: done.append(rank) or "value") == "value"
    assert done == [0] * (rank == 0)

    def refuse() -> None:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):  # raised on both, so that no process waits for ever
        parallel.rank0_first(refuse)
    assert distributed.global_rows(2, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]][rank]
    torch.manual_seed(0)
    whole = torch.randn(6)
    torch.manual_seed(0)
    assert torch.equal(distributed.draw_for_rank(torch.randn, 3), whole[3 * rank : 3 * rank + 3])
    total = torch.tensor(3.0 if rank else 1.0, requires_grad=True)
    ratio = distributed.ratio(total, torch.tensor(6 if rank else 2))
    assert float(distributed.mean(ratio)) == 0.5  # (1 + 3) / (2 + 6)
    assert float(distributed.ratio(total, torch.tensor(0))) == 2 * float(total)  # nothing counted


def hang(rank: int) -> None:
    """The second process does not reach a step; the first one reports it."""
    reports: list[str] = []
    with Heartbeat(reports.append, silence=0.4) as heart:
        wait_for_the_other(rank, heart, reports)


def wait_for_the_other(rank: int, heart: Heartbeat, reports: list[str]) -> None:
    heart.beat(7)
    distributed.barrier()
    if rank == 0:
        heart.beat(8)
        end = time.monotonic() + 20
        while not reports and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
        assert len(reports) == 1, reports  # once a step
        assert "Waiting at step 8 for process 1 on " in reports[0]
        assert "(at step 7 for " in reports[0]
    distributed.barrier()


def test_two_processes_that_gather_have_the_gradient_of_the_whole_batch(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(one_of_two, (port, str(tmp_path)), nprocs=WORLD)
    both = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(WORLD)]

    x1, x2, w = data()
    w.requires_grad_()
    z1, z2 = embed(x1, w), embed(x2, w)
    loss = contrast(z1, z2, z1, z2, 0)
    loss.backward()
    for rank, out in enumerate(both):
        near = {"rtol": 0, "atol": 1e-9}
        torch.testing.assert_close(out["order"], torch.stack([z1, z2]).detach(), **near)
        torch.testing.assert_close(out["loss"], loss.detach(), **near)
        torch.testing.assert_close(out["grad"], w.grad, **near)
        # Both losses depend on the slice: 3 from each. The bystander's own stays 3.
        assert torch.equal(out["shared_a"], torch.full((1, 2), 6.0, dtype=torch.float64))
        assert torch.equal(out["shared_b"], torch.full((WORLD, 2), 3.0, dtype=torch.float64))
        base = torch.arange(6.0).reshape(2, 3).T
        assert torch.equal(out["view"], torch.cat([base, base + 1]))
        assert (out["sum"].item(), out["mean"].item()) == (3.0, 1.5)
        assert out["kept"].item() == rank + 1  # reducing does not write into what it is given

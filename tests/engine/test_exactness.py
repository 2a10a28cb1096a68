"""Two and three processes give the results of one: losses, gradients, and all saved state.

Each method takes three steps of six images, in one process and in several (gloo, on the CPU), which
get equal parts of the images. In fp64 only the order of sums differs. With an error introduced on
purpose (a gather without gradient, a missing reduction, ...) the results must differ clearly.

`NOLABEL_EXACTNESS=write` writes the tables of docs/distributed.md again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nolabel import distributed, methods
from nolabel.engine import distributed_method as wrapper
from nolabel.engine import norms
from nolabel.engine.distributed_method import DistributedMethod
from nolabel.engine.gradients import gradients
from nolabel.engine.optimiser import build_optimiser, set_rates
from nolabel.engine.step import apply_update
from nolabel.nn.frozen import Frozen
from nolabel.testing import IMAGES, TINY, build_small, random_batch
from nolabel.types import Batch, Clock, Optim

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
STEPS, SIDE = 3, 32
HEADS = {"head_batch_norm": True, "freeze_last_layer": 0}
MORE: dict[str, dict[str, Any]] = {
    "vqvae": {"revive": 0.5},
    "swav": {"queue": 12},  # two steps
    "deepclusterv2": {"images": 12},
    "dino": HEADS,
    "ibot": HEADS,
    "dinov2": {**HEADS, "koleo": 0.1},
}
OPTIONS: dict[str, dict[str, Any]] = {n: {**TINY[n], **MORE.get(n, {})} for n in methods.METHODS}
OF_RESNETS = ("autoencoder", "triplet", "simclr", "mocov3", "clip", "siglip", "swav",
              "deepclusterv2", "obow", "barlow", "distill", "byol", "dino")  # fmt: skip
VARIANTS = {  # other options of these methods
    "dino, Sinkhorn": (
        "dino-ablated",
        "vit_pico",
        {**OPTIONS["dino"], "centring": "sinkhorn", "loss": "mse"},
    ),
    "dinov2, centre": ("dinov2", "vit_pico", {**OPTIONS["dinov2"], "centring": "centre"}),
    "triplet, all": ("triplet", "vit_pico", {**OPTIONS["triplet"], "mining": "all"}),
    "clip, chunk": ("clip", "vit_pico", {**TINY["clip"], "chunk": 1}),
    "simmim, Swin": ("simmim", "swin_nano", {"unit": 8}),
}
# Writing the tables measures all rows. Otherwise rows that test the same code are left out: most
# ResNets have the same batch norm, micro-batches are the same for all methods, and three processes
# are needed only where something is drawn, stored or counted for the global batch.
ALL = os.environ.get("NOLABEL_EXACTNESS") == "write"
RESNETS = ("byol, ResNet", "dino, ResNet", "obow, ResNet")
BY_THREE = ("vqvae", "beit", "mocov2", "swav", "deepclusterv2", "ibot", "dinov2", "byol, ResNet",
            "clip, cut")  # fmt: skip
SHARDED = ("mae", "clip", "clip, cut", "swav", "dinov2", "byol, ResNet")
BY_LAYERS = ("mae", "beit", "clip", "simmim, Swin", "dinov2")
Case = tuple[str, str, dict[str, Any]]


def rows_of(world: int) -> dict[str, Case]:
    """The rows that so many processes are measured on."""
    return {
        n: c for n, c in cases().items()
        if ALL or (n in BY_THREE if world == 3 else n in RESNETS or not n.endswith("ResNet"))
    }  # fmt: skip


COMPARING = ("triplet", "simclr", "mocov3", "clip", "siglip", "barlow")  # also in micro-batches


def cases() -> dict[str, Case]:
    """Row of the table -> method, backbone, options."""
    found = {name: (name, "vit_pico", given) for name, given in OPTIONS.items()}
    found |= {f"{n}, ResNet": (n, "resnet_nano", OPTIONS[n]) for n in OF_RESNETS}
    return found | {f"{n}, cut": (n, "vit_pico", OPTIONS[n]) for n in COMPARING} | VARIANTS


def part(batch: Batch) -> Batch:
    """This process's images of a batch."""
    n = batch.size // distributed.world_size()
    own = slice(distributed.rank() * n, (distributed.rank() + 1) * n)
    assert batch.keys is not None and batch.text is not None
    return dataclasses.replace(
        batch,
        views={k: v[:, own].double() for k, v in batch.views.items()},
        keys=batch.keys[own],
        text=batch.text[own],
    )


def cut(batch: Batch, parts: int) -> Iterator[Batch]:
    """Micro-batches."""
    assert batch.keys is not None and batch.text is not None
    n = batch.size // parts
    for own in (slice(i * n, (i + 1) * n) for i in range(parts)):
        yield dataclasses.replace(
            batch, views={k: v[:, own] for k, v in batch.views.items()}, keys=batch.keys[own],
            text=batch.text[own],
        )  # fmt: skip


def train(
    case: Case, shard: bool = False, parts: int = 1, layers: bool = False
) -> dict[str, Tensor]:
    """Loss and gradients of each step, and the state after the last."""
    method, backbone, given = case
    kind = methods.load(method)
    options = kind.Options(**given)
    model = build_small(kind, options, backbone).double()
    for held in vars(model).values():
        if isinstance(held, Frozen):
            held.module.double()
    together = DistributedMethod(model, shard=shard, by_layer=layers)
    optim = Optim(name="sgd", lr=0.05, lr_end=0.0, warmup_epochs=0.0, clip=3.0)
    optimiser = build_optimiser(model, optim)
    torch.manual_seed(1)
    out: dict[str, Tensor] = {}
    for step in range(STEPS):
        clock = Clock(step, 8, 2)
        set_rates(optimiser, optim, clock)
        batch = random_batch(kind.views(options, SIDE), step)
        batch = dataclasses.replace(batch, keys=torch.arange(IMAGES) + IMAGES * (step % 2))
        _, loss = gradients(together, cut(part(batch), parts), parts, clock)
        out[f"loss {step}"] = distributed.mean(loss)
        for name, p in model.named_parameters():
            if p.grad is not None:
                out[f"gradient {step} {name}"] = distributed.full_tensor(p.grad).clone()
        apply_update(model, optimiser, optim, clock)
    return out | {
        f"state {k}": distributed.full_tensor(v).clone() for k, v in model.state_dict().items()
    }


def in_double() -> None:
    """Methods take what they compare to fp32 at least; here it stays fp64."""
    narrow = torch.Tensor.float

    def float_(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else narrow(x)

    torch.Tensor.float = float_  # type: ignore[method-assign]


class Averaged(norms.SyncedBatchNorm):
    """An error on purpose: the mean of the processes' variances."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        mean = distributed.gather_with_grad(input.mean(0, keepdim=True)).mean(0)
        var = distributed.gather_with_grad(input.var(0, keepdim=True, correction=0)).mean(0)
        y = (input - mean) * (var + self.eps).rsqrt()
        return y if self.weight is None else y * self.weight + self.bias


def averaging(method: nn.Module, without: Any) -> None:
    for m in method.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.__class__ = Averaged  # type: ignore[assignment]


def alone(self: DistributedMethod, method: Any, **sharding: bool) -> None:
    self.method, self.ddp, self.fsdp = method, None, None
    self.units, self.unsharded_parameters = [], []
    self.module = wrapper._ForwardModule(method)


# Errors introduced on purpose: object, attribute, replacement, and the row that must detect it.
BROKEN: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "a gather without gradient": (distributed, "gather_with_grad", distributed.gather, "simclr"),
    "no sum over processes": (distributed, "sum", lambda x: x.detach(), "dinov2, centre"),
    "averaged variances": (wrapper, "synchronise", averaging, "barlow"),
    "no batch norm of all": (wrapper, "synchronise", lambda method, without: None, "byol"),
    "no mean of gradients": (DistributedMethod, "__init__", alone, "mae"),
    "masks by process": (distributed, "draw_for_rank", lambda draw, n: draw(n), "mae"),
    "blocks by process": (
        distributed, "global_rows", lambda n, copies=1, device=None: torch.arange(n * copies),
        "ibot",
    ),
    "a mean by process": (
        distributed, "ratio", lambda total, count: total / count.clamp_min(1), "beit",
    ),
    "every process as the first": (distributed, "rank", lambda: 0, "clip"),
}  # fmt: skip


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of the processes. It first trains its share of the rows alone, to compare the results
    with those of all processes."""
    torch.set_num_threads(1)
    in_double()
    rows = list(rows_of(world).items())
    one = {name: train(case) for name, case in rows[rank::world]}
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    found, digests, broken = {}, {}, {}
    for name, case in rows:
        parts = IMAGES // world if name.endswith(", cut") else 1
        together = train(case, parts=parts)
        digests[name] = [digest(together)]
        if name in one:
            found[name] = apart(one[name], together)
        if ALL or world == 2 and name in SHARDED:
            sharded = train(case, shard=True, parts=parts)
            digests[name].append(digest(sharded))
            if name in one:
                found[name]["sharded"] = max(apart(one[name], sharded).values())
        if ALL or world == 2 and name in BY_LAYERS:
            layers = train(case, shard=True, parts=parts, layers=True)
            digests[name].append(digest(layers))
            if name in one:
                found[name]["by layers"] = max(apart(one[name], layers).values())
    if world == 2:
        check_unsharded()
    for name, (place, attribute, wrong, row) in BROKEN.items() if world == 2 else ():
        right = getattr(place, attribute)
        setattr(place, attribute, wrong)
        try:
            together = train(cases()[row])
        finally:
            setattr(place, attribute, right)
        if row in one:
            broken[name] = apart(one[row], together)
    torch.save((found, digests, broken), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def check_unsharded() -> None:
    """During a step the weights are unsharded, except with `by_layer`."""
    kind, options = methods.load("mae"), methods.load("mae").Options(**OPTIONS["mae"])
    for layers in (False, True):
        model = build_small(kind, options, "vit_pico").double()
        together = DistributedMethod(model, shard=True, by_layer=layers)
        together.step(part(random_batch(kind.views(options, SIDE), 0)), Clock(0, 8, 2))
        assert isinstance(model.encoder.shard_units[0].qkv.weight, DTensor) == layers
        with together.unsharded():
            assert not isinstance(model.encoder.shard_units[0].qkv.weight, DTensor)
            if distributed.rank() == 0:  # a forward pass on rank 0 alone: no collective
                x = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
                assert torch.equal(model.encoder(x), model.encoder(x))
        assert isinstance(model.encoder.shard_units[0].qkv.weight, DTensor)


def digest(values: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, value in values.items():
        sha.update(name.encode() + value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of losses, gradients, weights, batch norms and other buffers, each in
    units of the largest number of its kind."""
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    worst: dict[str, tuple[float, float]] = {}
    for key, value in a.items():
        kind = key.split()[0]
        if kind == "state":
            kind = "batch norms" if "running_" in key or "num_batches" in key else "state"
        x, y = value.double(), b[key].double()
        away, size = float((x - y).abs().max()), float(x.abs().max())
        before = worst.get(kind, (0.0, 0.0))
        worst[kind] = (max(before[0], away), max(before[1], size))
    return {k: away / max(size, 1e-30) for k, (away, size) in worst.items()}


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_train_every_method_as_one_does(world, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(process, (world, port, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(world)]
    every = {name: d for found, _, _ in ranks for name, d in found.items()}
    found = {name: every[name] for name in rows_of(world)}
    wrong = {n: d for n, d in found.items() if max(d.values()) > 1e-9}
    assert not wrong, wrong
    assert all(digests == ranks[0][1] for _, digests, _ in ranks)  # all ranks have the same result
    broken = {name: d for _, _, some in ranks for name, d in some.items()}
    assert set(broken) == (set(BROKEN) if world == 2 else set())
    for name, d in broken.items():
        assert max(d.values()) > 1e-6, f"nobody notices {name}"
    if os.environ.get("NOLABEL_EXACTNESS") == "write":
        write(world, found)
    rows = {line.split(" | ")[0].strip("| ") for line in PAGE.read_text().splitlines()}
    assert {f"`{name}`" for name in found} <= rows


COLUMNS = ("loss", "gradient", "state", "batch norms", "sharded", "by layers")


def write(world: int, found: dict[str, dict[str, float]]) -> None:
    """The table between the marks of the page, for this number of processes."""
    lines = [f"| {world} processes | loss | gradients | weights and buffers | batch norms "
             "| sharded, all of it | by layers |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, d in found.items():
        cells = (f"{d[c]:.0e}" if c in d else "-" for c in COLUMNS)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    text = PAGE.read_text()
    first, last = f"<!-- exactness {world} -->\n", f"<!-- /exactness {world} -->"
    head, rest = text.split(first)
    PAGE.write_text(head + first + "\n" + "\n".join(lines) + "\n\n" + last + rest.split(last)[1])

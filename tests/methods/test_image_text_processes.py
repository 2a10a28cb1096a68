"""Two processes learn from images and texts as one does from the whole batch."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nolabel import distributed
from nolabel.backbones import build
from nolabel.methods import load
from nolabel.testing import captions
from nolabel.types import Batch, Clock

WORLD = 2


def gradients(name, part, chunk):
    """Loss and gradients of the images in `part`, averaged over processes as DDP does."""
    torch.manual_seed(0)
    kind = load(name)
    options = kind.Options(vocabulary=530, context=10, projection=8, text_dim=16, text_depth=1,
                           text_heads=2, chunk=chunk)  # fmt: skip
    method = kind(build("vit_pico", image_size=32), options,
                  kind.make_tokenizer(options, captions()))  # fmt: skip
    x = torch.randn(1, 6, 3, 32, 32)
    batch = Batch(views={"image": x[:, part]}, text=captions()[part])
    loss = method.step(batch, Clock(0, 1, 1)).loss
    loss.backward()
    out = {n: distributed.mean(p.grad) for n, p in method.named_parameters()}
    return {**out, "loss": distributed.mean(loss)}


def one_of_two(rank, port, folder, name, chunk):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD
    )
    torch.save(gradients(name, slice(3 * rank, 3 * rank + 3), chunk), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("name", "chunk"), [("clip", 0), ("clip", 2), ("siglip", 0)])
def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path, name, chunk):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(one_of_two, (port, str(tmp_path), name, chunk), nprocs=WORLD)
    whole = gradients(name, slice(0, 6), 0)
    assert any(v.abs().max() > 1e-3 for v in whole.values())
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for key, value in whole.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
            )

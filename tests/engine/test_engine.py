"""Whole tiny runs: skipped steps, accumulation, full disks, unreadable files, the probe."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nolabel.engine import checkpoint as ckpt
from nolabel.engine import trainer
from nolabel.engine.monitor.metrics import MetricsLog
from nolabel.errors import DataError

STATEFUL = ["dino", "ibot", "dinov2", "byol", "simclr", "barlow", "mocov2", "mocov3", "swav",
            "deepclusterv2", "obow", "vqvae", "dvae"]  # fmt: skip


@pytest.mark.parametrize("method", STATEFUL)
def test_a_step_that_is_not_finite_changes_nothing(method, tiny_run, monkeypatch):
    """Weights, teacher, centre, queue, memory, codes, and the statistics of batch norms."""
    from nolabel import methods

    kind = methods.load(method)
    real, seen = kind.step, {}

    def broken(self, batch, clock):
        state = {k: v.clone() for k, v in self.state_dict().items()}
        if clock.step == 2:
            seen["before"] = state
        if clock.step == 3:
            seen["after"] = state
        out = real(self, batch, clock)
        return out if clock.step != 2 else type(out)(out.loss * math.nan, out.logs, out.features)

    monkeypatch.setattr(kind, "step", broken)
    tiny_run(method, steps=7 if method == "deepclusterv2" else 4)  # more than an epoch
    changed = [k for k, v in seen["before"].items() if not torch.equal(v, seen["after"][k])]
    assert not changed


@pytest.mark.parametrize("method", ["dino", "mae"])
def test_accumulated_micro_batches_equal_the_large_batch(method, tiny_run, monkeypatch):
    if method == "mae":  # the same patches must be hidden for the comparison
        from nolabel.methods.mae import MAE

        real = MAE.step

        def fixed(self, batch, clock):
            g = [torch.Generator().manual_seed(int(k) + 99 * clock.step) for k in batch.keys]
            noise = torch.stack([torch.rand(64, generator=one) for one in g])
            with monkeypatch.context() as patch:
                patch.setattr("nolabel.methods.mae.mask_noise", lambda *_: noise)
                return real(self, batch, clock)

        monkeypatch.setattr(MAE, "step", fixed)
    # Stochastic depth and batch statistics always depend on the micro-batch.
    extra = {"drop_path": 0.0, "head_batch_norm": False} if method == "dino" else {}
    whole = tiny_run(method, out="whole", optimiser="sgd", lr=0.05, **extra)
    parts = tiny_run(method, out="parts", optimiser="sgd", lr=0.05, accumulate=4, **extra)
    a, b = (load_file(r.folder / "encoder.safetensors") for r in (whole, parts))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=2e-6)
    states = [ckpt.load_checkpoint(r.folder).state["learner"]["method"] for r in (whole, parts)]
    if method == "dino":
        torch.testing.assert_close(states[0]["centre.value"], states[1]["centre.value"],
                                   rtol=1e-4, atol=1e-6)  # fmt: skip


def test_hooks_run_once_an_optimiser_step_under_accumulation(tiny_run, monkeypatch):
    from nolabel.methods.dino import DINO

    calls = []
    real = DINO.after_update
    monkeypatch.setattr(
        DINO, "after_update", lambda self, clock: (calls.append(clock.step), real(self, clock))
    )
    tiny_run("dino", accumulate=2)
    assert calls == [0, 1, 2, 3]


def test_a_full_disk_in_mid_run_does_not_stop_the_run(tiny_run, monkeypatch):
    real, calls = trainer.save_checkpoint, []

    def sometimes(folder, step, state, keep=2):
        calls.append(step)
        if step == 2:
            raise ckpt.SaveFailed("no space")
        return real(folder, step, state, keep)

    monkeypatch.setattr(trainer, "save_checkpoint", sometimes)
    run = tiny_run(checkpoint_every=1)
    assert calls == [1, 2, 3, 4]
    assert ckpt.load_checkpoint(run.folder).step == 4


def test_metrics_that_cannot_be_written_do_not_stop_the_run(tiny_run, monkeypatch):
    def full(self, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsLog, "write", full)
    assert ckpt.load_checkpoint(tiny_run().folder).step == 4


def test_too_many_unreadable_files_stop_the_run_with_a_list(photos, tiny_run, tmp_path):
    import shutil

    import nolabel as nl

    data = tmp_path / "data"
    shutil.copytree(photos, data)
    for i in range(4):
        (data / f"bad{i}.png").write_bytes(b"<html>not found</html>")
    settings = {"steps": 12, "batch_size": 13, "backbone": "vit_pico", "image_size": 32,
                "precision": "fp32", "workers": 0, "quiet": True}  # fmt: skip
    with pytest.raises(DataError, match="--max-bad"):
        nl.pretrain("simclr", data=str(data), out=tmp_path / "a", **settings)
    run = nl.pretrain("simclr", data=str(data), out=tmp_path / "b", max_bad=0.2, **settings)
    listed = [json.loads(x) for x in (run.folder / "skipped.jsonl").read_text().splitlines()]
    assert {Path(x["path"]).name for x in listed} == {f"bad{i}.png" for i in range(4)}
    assert all(x["reason"] for x in listed)


def test_the_probe_changes_nothing_in_the_training(tiny_run, photos):
    a = tiny_run("dino", out="a")
    b = tiny_run("dino", out="b", probe=str(photos), probe_every=1, log_every=1)
    x, y = (load_file(r.folder / "encoder.safetensors") for r in (a, b))
    assert all(torch.equal(x[k], y[k]) for k in x)


def test_init_continues_from_weights(tiny_run):
    first = tiny_run("simclr", out="first")
    second = tiny_run("simclr", out="second", init=str(first.folder), steps=1, lr=0.0)
    a, b = (load_file(r.folder / "encoder.safetensors") for r in (first, second))
    assert all(torch.equal(a[k], b[k]) for k in a)

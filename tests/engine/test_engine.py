"""Optimisers, guard, accumulation, signals and saves: the engine's small promises."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nolabel.engine import checkpoint as ckpt
from nolabel.engine import trainer
from nolabel.engine.monitor.metrics import MetricsLog
from nolabel.engine.monitor.signals import effective_rank, feature_std
from nolabel.engine.optimiser import (
    Lars,
    build_optimiser,
    clip_gradients,
    gradient_norm,
    set_rates,
)
from nolabel.errors import DataError, FileDamaged, UsageError
from nolabel.types import Clock, Optim

ORACLES = Path(__file__).parents[1] / "oracles"


def test_lars_matches_the_official_numbers():
    """Four updates from the start, every weight after each."""
    o = load_file(ORACLES / "lars.safetensors")
    w, b = nn.Parameter(o["w0"].clone()), nn.Parameter(o["b0"].clone())
    groups = [
        {"params": [w], "decay": True, "weight_decay": 0.01},
        {"params": [b], "decay": False, "weight_decay": 0.0},
    ]
    optimiser = Lars(groups, lr=0.2, momentum=0.9)
    for i in range(4):
        w.grad, b.grad = o[f"gw{i}"].clone(), o[f"gb{i}"].clone()
        optimiser.step()
        torch.testing.assert_close(w.data, o[f"w{i + 1}"], rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(b.data, o[f"b{i + 1}"], rtol=1e-4, atol=2e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 4), requires_grad=False)
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.weight_g = nn.Parameter(torch.ones(4, 1))


def test_matrices_and_tokens_decay_and_one_dimensional_tensors_do_not():
    net = Net()
    groups = build_optimiser(net, Optim()).param_groups
    decayed = {id(p) for g in groups if g["decay"] for p in g["params"]}
    named = {n for n, p in net.named_parameters() if id(p) in decayed}
    assert named == {"cls_token", "fc.weight", "weight_g"}
    assert sum(len(g["params"]) for g in groups) == 6  # the fixed positions are not trained


def test_weight_decay_schedule_reaches_the_decayed_group_alone():
    net = Net()
    optim = Optim(weight_decay=0.04, weight_decay_end=0.4, warmup_epochs=0)
    optimiser = build_optimiser(net, optim)
    set_rates(optimiser, optim, Clock(5, 10, 5))
    by_decay = {g["decay"]: g["weight_decay"] for g in optimiser.param_groups}
    assert by_decay[True] == pytest.approx(0.22)
    assert by_decay[False] == 0.0


@pytest.mark.parametrize("how", ["tensor", "global"])
def test_clipping_shortens_each_tensor_or_all_together(how):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_gradients(torch.nn.ParameterList([a, b]), Optim(clip=1.0, clip_by=how))
    if how == "tensor":
        assert a.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
        assert b.grad.norm().item() == pytest.approx(0.5)
    else:
        assert gradient_norm([a, b]).item() == pytest.approx(1.0, rel=1e-4)
        assert (a.grad / b.grad)[0].item() == pytest.approx(10.0)


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
    tiny_run(method)
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
    # Stochastic depth and batch statistics depend on the micro-batch by their nature.
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


def test_feature_std_is_one_for_isotropic_features_and_zero_for_collapsed_ones():
    g = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(4000, 32, generator=g)) == pytest.approx(1.0, abs=0.02)
    assert feature_std(torch.ones(100, 32)) == pytest.approx(0.0, abs=1e-6)


def test_effective_rank_counts_dimensions():
    g = torch.Generator().manual_seed(0)
    low = torch.randn(500, 4, generator=g) @ torch.randn(4, 64, generator=g)
    assert effective_rank(low) < 4.01
    assert effective_rank(torch.randn(2000, 16, generator=g)) > 15.5


def test_metrics_of_steps_that_are_run_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.write({"step": step, "loss": float("nan") if step == 2 else 1.0})
    log.close()
    path.write_text(path.read_text() + '{"step": 6, "lo')  # cut short by a crash
    MetricsLog(path, start=3).close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [m["step"] for m in lines] == [1, 2, 3]
    assert lines[1]["loss"] is None


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_interrupted_anywhere_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch, call):
    ckpt.save_checkpoint(tmp_path, 1, {"x": torch.arange(3)})

    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(os, call, die)
        ckpt.save_checkpoint(tmp_path, 2, {"x": torch.arange(4)})
    assert ckpt.load_checkpoint(tmp_path).step == 1
    ckpt.save_checkpoint(tmp_path, 3, {"x": torch.arange(5)})
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-00000001.ckpt", "step-00000003.ckpt"}  # no orphan


def test_a_full_disk_loses_nothing_and_says_so(tmp_path, monkeypatch):
    ckpt.save_checkpoint(tmp_path, 1, {"x": torch.arange(3)})

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m, pytest.raises(ckpt.SaveFailed, match="space"):
        m.setattr(os, "fsync", full)
        ckpt.save_checkpoint(tmp_path, 2, {"x": torch.arange(4)})
    assert ckpt.load_checkpoint(tmp_path).step == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


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


def test_a_checkpoint_that_does_not_fit_names_what_is_wrong():
    net = nn.Linear(2, 2)
    state = ckpt.capture(net, torch.optim.SGD(net.parameters(), lr=0.1))
    del state["method"]["bias"]
    with pytest.raises(FileDamaged, match="bias"):
        ckpt.restore(net, None, state)


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


def test_a_folder_that_holds_a_run_is_never_overwritten_unasked(tiny_run):
    tiny_run()
    with pytest.raises(UsageError, match="--overwrite"):
        tiny_run()
    tiny_run(overwrite=True)


def test_overwrite_never_deletes_a_folder_that_holds_no_run(tiny_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds no run"):
        tiny_run(overwrite=True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "dear"


def test_a_run_folder_has_all_its_parts(tiny_run, photos):
    run = tiny_run("dino", probe=str(photos), probe_every=2, log_every=1)
    names = {p.name for p in run.folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "environment.json", "checkpoints",
            "encoder.safetensors"} <= names  # fmt: skip
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "lr", "feature_std", "effective_rank", "target_entropy", "target_information",
            "images_per_second", "data_wait"} <= lines[-1].keys()  # fmt: skip
    assert 0 <= lines[-1]["probe_knn"] <= 1


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

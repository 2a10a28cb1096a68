"""Runs with --init: new heads are trained first, and the init guard checks the features."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import nolabel as nl
from nolabel.data.creatures.world import Creatures
from nolabel.engine.monitor import init_guard
from nolabel.engine.monitor.init_guard import InitGuard, similarity
from nolabel.engine.monitor.signals import effective_rank
from nolabel.errors import GuardStop, UsageError

DATA = Creatures("train", count=64)
QUICK = {"data": DATA, "batch_size": 16, "precision": "fp32", "workers": 0, "quiet": True,
         "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run whose network the others continue."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    nl.pretrain("mae", backbone="vit_pico", steps=2, out=folder, **QUICK)
    return folder


def weights(folder):
    return load_file(folder / "encoder.safetensors")


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def moved(a, b):
    return any(not torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", ["simclr", "dino", "byol"])
def test_new_heads_learn_alone_at_first_and_then_the_network_too(method, first, tmp_path):
    given = {**QUICK, "init": str(first)}
    if method == "dino":
        given["local_crops"] = 2
    still = nl.pretrain(method, steps=2, warm_heads=2, out=tmp_path / "still", **given)
    assert not moved(weights(first), weights(still.folder))
    free = nl.pretrain(method, steps=3, warm_heads=2, out=tmp_path / "free", **given)
    assert moved(weights(first), weights(free.folder))
    losses = [x["loss"] for x in lines(still.folder)]
    assert losses[0] != losses[1]


def test_the_length_is_settled_and_saved_and_none_where_the_heads_came_along(first, tmp_path):
    given = {**QUICK, "init": str(first)}
    new = nl.pretrain("simclr", steps=40, out=tmp_path / "new", **given)
    assert new.settings.warm_heads == 2  # five per cent
    same = nl.pretrain("mae", steps=2, out=tmp_path / "same", **given)
    assert same.settings.warm_heads == 0


def test_similarity_knows_rotations_from_strangers():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(200, 8, generator=g)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g)).Q
    assert similarity(z, 3.0 * z @ turn + 1.0) == pytest.approx(1.0)
    assert similarity(z, torch.randn(200, 8, generator=g)) < 0.1
    centred = z - z.mean(0)
    other = torch.randn(200, 5, generator=g)
    gram = centred @ centred.T
    o = (other - other.mean(0)) @ (other - other.mean(0)).T  # the definition, by kernels
    expected = (gram * o).sum() / (gram.norm() * o.norm())
    assert similarity(z, other) == pytest.approx(float(expected), rel=1e-4)


def test_a_gentle_continuation_is_silent_and_says_how_far_it_moved(first, tmp_path, capsys):
    given = {**QUICK, "init": str(first), "quiet": False}
    run = nl.pretrain("simclr", steps=4, out=tmp_path / "run", lr=1e-4, **given)
    last = lines(run.folder)[-1]
    assert last["init_similarity"] > 0.9 and 0.5 < last["init_rank"] < 2
    assert "destroyed" not in capsys.readouterr().err
    assert (run.folder / init_guard.FILE).is_file()


def destroyed(encoder):
    """A network after a rate that is far too high: all features are equal."""
    with torch.no_grad():
        for p in encoder.parameters():
            p.mul_(0)


def test_destroyed_features_warn_or_go_back_and_stop(first, tmp_path, monkeypatch, capsys):
    check = InitGuard.check

    def spoiled(self, step, encoder, probe):
        if step >= 3:
            destroyed(encoder)
        return check(self, step, encoder, probe)

    monkeypatch.setattr(InitGuard, "check", spoiled)
    given = {**QUICK, "init": str(first), "quiet": False, "steps": 4, "log_every": 1,
             "probe_every": 1, "lr": 1e-4, "warm_heads": 0}  # fmt: skip
    nl.pretrain("simclr", out=tmp_path / "warn", **given)
    printed = capsys.readouterr().err
    assert "Step 3: the weights of --init are being destroyed" in printed and "CKA" in printed
    with pytest.raises(GuardStop, match="is that of step 2") as stopped:
        nl.pretrain("simclr", out=tmp_path / "back", init_guard="rollback", **given)
    assert stopped.value.exit_code == 3
    kept = nl.load(tmp_path / "back")
    z = kept.embed(list(DATA.images()))
    assert effective_rank(z) > 2 and moved(weights(first), weights(tmp_path / "back"))


def test_a_fall_of_the_probe_is_seen(first, tmp_path):
    encoder = nl.load(first)
    plan = nl.views.evaluation_plan(32)
    guard = InitGuard(tmp_path, encoder.backbone, plan, DATA, lambda *_: 0.6)
    assert not guard.check(1, encoder.backbone, 0.57).destroyed
    assert "k-NN fell from 60.0% to 54.0%" in guard.check(2, encoder.backbone, 0.54).destroyed
    again = InitGuard(tmp_path, encoder.backbone, plan, DATA, None)  # after a resume
    assert again.probe == 0.6 and again.check(3, encoder.backbone, None).similarity > 0.999


def test_wrong_use_is_said_clearly(first):
    with pytest.raises(UsageError, match="without --init"):
        nl.pretrain("simclr", warm_heads=3, steps=2, **QUICK)
    with pytest.raises(UsageError, match="Did you mean 'warn'"):
        nl.pretrain("simclr", init=str(first), init_guard="warm", steps=2, **QUICK)

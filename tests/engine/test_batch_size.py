"""`--batch-size auto`: the largest batch that memory holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import nolabel as nl
from nolabel._files.yaml import read_yaml
from nolabel.config import Request
from nolabel.data.creatures.world import Creatures
from nolabel.engine import machine
from nolabel.engine.resolve import resolve
from nolabel.errors import OutOfMemory, UsageError
from nolabel.tools.ablate import ablate
from nolabel.tools.bench import bench_data, bench_step
from nolabel.tools.plan import plan

SMALL = {"data": "creatures", "out": "unused", "backbone": "vit_pico", "image_size": 32,
         "precision": "fp32", "steps": 1, "workers": 0, "batch_size": "auto",
         "fit_views": False}  # fmt: skip
COUNT = 4096


def found(room, monkeypatch, method="simclr", count=COUNT, **given):
    monkeypatch.setattr(machine, "usable_memory", lambda on_gpu: room)
    source = Creatures("train", size=32, count=count)
    return resolve(Request.of(method, **{**SMALL, **given}), source=source, quiet=True).run


def test_twice_the_memory_holds_about_twice_the_images_until_the_data_end(monkeypatch):
    sizes = [found(room * 1e6, monkeypatch).settings.batch_size for room in (20, 80, 1e6)]
    assert 1 < sizes[0] < sizes[1] < sizes[2] == COUNT // 8
    assert 2 <= sizes[1] / sizes[0] <= 8
    assert found(1e12, monkeypatch, count=128).settings.batch_size == 16


def test_the_papers_batch_is_enough(monkeypatch):
    assert found(1e12, monkeypatch, "dino", count=40_000).settings.batch_size == 1024
    # Data that are smaller than the paper's batch are no obstacle.
    assert found(1e12, monkeypatch, recipe="paper", count=100).settings.batch_size == 8


def test_the_learning_rate_is_that_of_the_batch_which_was_found(monkeypatch):
    auto = found(40e6, monkeypatch)
    asked = found(40e6, monkeypatch, batch_size=auto.settings.batch_size)
    assert auto.to_dict() == asked.to_dict()
    other = found(40e6, monkeypatch, batch_size=2 * auto.settings.batch_size)
    assert other.optim != auto.optim


def test_what_saves_memory_makes_room_for_more_images(monkeypatch):
    plain = found(40e6, monkeypatch).settings.batch_size
    assert found(40e6, monkeypatch, checkpoint_activations=True).settings.batch_size > plain
    assert found(40e6, monkeypatch, accumulate=2).settings.batch_size == 2 * plain
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert found(40e6, monkeypatch).settings.batch_size == 3 * plain


def test_what_does_not_fit_at_all_is_told_before_training(monkeypatch):
    with pytest.raises(OutOfMemory, match="checkpoint-activations"):
        found(1e5, monkeypatch)


def test_a_run_keeps_the_number(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "usable_memory", lambda on_gpu: 20e6)
    out = str(tmp_path / "run")
    nl.pretrain("simclr", **{**SMALL, "out": out})
    batch = read_yaml(tmp_path / "run" / "config.yaml")["settings"]["batch_size"]
    assert batch == found(20e6, monkeypatch, count=10_000).settings.batch_size
    assert f"batch size: {batch}, " in capsys.readouterr().err


def test_other_words_are_refused():
    with pytest.raises(UsageError, match="batch_size is 'most'"):
        resolve(Request.of("simclr", **{**SMALL, "batch_size": "most"}))


def test_every_verb_that_resolves_a_run_takes_an_automatic_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_memory", lambda on_gpu: 20e6)
    expected = found(20e6, monkeypatch, count=10_000).settings.batch_size
    step = bench_step("simclr", backbone="vit_pico", image_size=32, batch_size="auto",
                      precision="fp32", recipe="auto")  # fmt: skip
    assert step["batch_size"] == expected
    source = Creatures("train", size=32, count=COUNT)
    data = bench_data(source, "simclr", batch_size="auto", seconds=0.01)
    assert data["batch_size"] == found(20e6, monkeypatch, backbone=None).settings.batch_size
    given = {k: v for k, v in SMALL.items() if k not in ("data", "out")}
    judged = SimpleNamespace(best={"value": 0.5})  # how well they do is no matter here
    monkeypatch.setattr("nolabel.tools.ablate.evaluate", lambda *args, **kwargs: judged)
    ablate("simclr", data="creatures", rows={"hot": {"temperature": 0.5}}, seeds=1,
           out=tmp_path, **given)  # fmt: skip
    for folder in ("as-it-is-0", "hot-0"):
        saved = read_yaml(tmp_path / folder / "config.yaml")["settings"]
        assert saved["batch_size"] == expected


def test_a_plan_takes_the_largest_batch_that_its_devices_hold():
    few, many = (
        plan("simclr", backbone="vit_pico", image_size=32, devices=n, gpu="v100",
             batch_size="auto", recipe="auto")
        for n in (1, 2)
    )  # fmt: skip
    assert many["batch_size"] in (few["batch_size"], 2 * few["batch_size"])
    assert many["fits"] and many["batch_size"] % 2 == 0
    with_number = plan("simclr", backbone="vit_pico", image_size=32, devices=2, gpu="v100",
                       batch_size=many["batch_size"], recipe="auto")  # fmt: skip
    assert with_number == many

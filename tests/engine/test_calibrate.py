"""What is measured at the start: length, precision, workers."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nolabel.config import Settings
from nolabel.engine.calibrate import Measured, _step_seconds
from nolabel.engine.measurement import _measured_settings, views_device, worker_count
from nolabel.errors import UsageError
from nolabel.methods.deepclusterv2 import DeepClusterV2
from nolabel.testing import IMAGES, TINY, build_small, random_batch
from nolabel.types import Optim

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("data", "device", "any_workers"),
    [(0.01, CPU, False), (0.09, CPU, True), (0.01, GPU, True)],
    ids=["quick data beside a CPU's training", "slow data", "a GPU leaves the cores free"],
)
def test_workers_are_used_unless_they_take_the_cores_from_the_training(data, device, any_workers):
    assert (worker_count(data, 0.1, device) > 0) == any_workers


@pytest.mark.parametrize(
    ("data", "workers", "device", "where"),
    [(0.9, 4, CPU, "cpu"), (0.3, 4, GPU, "cpu"), (0.5, 4, GPU, "device"), (0.2, 0, GPU, "device")],
)
def test_views_move_to_a_gpu_that_the_cores_cannot_feed(data, workers, device, where):
    assert views_device(workers, device, data, 0.1) == where


def test_views_stay_where_the_user_wants_them():
    measured = Measured(batch=None, data=0.9, times={"fp32": 0.1}, accumulate=1)
    for asked, made in (("auto", "device"), ("cpu", "cpu")):
        s = Settings(workers=0, views_on=asked, precision="fp32")
        assert _measured_settings(s, measured, GPU, quiet=True).views_on == made


def test_a_run_of_few_steps_an_epoch_is_measured_and_then_refused(tiny_run):
    """DeepCluster v2 learns from the second epoch on: the trial steps do not know the length."""
    with pytest.raises(UsageError, match="nothing would be learnt"):
        tiny_run("deepclusterv2", steps=2, workers=None)


def test_trial_steps_do_not_pretend_that_the_run_ends_with_an_epoch():
    method = build_small(
        DeepClusterV2, DeepClusterV2.Options(**TINY["deepclusterv2"], images=IMAGES), "vit_pico"
    )
    batch = random_batch(DeepClusterV2.views(method.options, 32), 0)
    batch = dataclasses.replace(batch, keys=torch.arange(IMAGES))
    run: Any = SimpleNamespace(optim=Optim(), steps_per_epoch=5000)
    assert _step_seconds(run, method, batch, "fp32", CPU) > 0


def test_measured_settings_are_saved_and_nothing_is_left_open(tiny_run):
    run = tiny_run(steps=None, minutes=0.005, workers=None, precision="auto")
    s = run.settings
    assert s.steps is not None and s.steps >= 1
    assert s.precision in ("fp32", "bf16")
    assert s.workers is not None
    assert s.views_on == "cpu"


def test_measuring_leaves_the_run_as_its_seed_makes_it(tiny_run):
    """The trial steps train a copy: the same weights come out with and without them."""
    from safetensors.torch import load_file

    measured, given = tiny_run(out="a", workers=None), tiny_run(out="b", workers=0)
    a, b = (load_file(r.folder / "encoder.safetensors") for r in (measured, given))
    assert all(torch.equal(a[k], b[k]) for k in a)

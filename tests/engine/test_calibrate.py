"""What is measured at the start: length, precision, workers."""

from __future__ import annotations

import pytest
import torch

from nolabel.engine import calibrate

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("data", "device", "any_workers"),
    [(0.01, CPU, False), (0.09, CPU, True), (0.01, GPU, True)],
    ids=["quick data beside a CPU's training", "slow data", "a GPU leaves the cores free"],
)
def test_workers_are_used_unless_they_take_the_cores_from_the_training(data, device, any_workers):
    assert (calibrate._workers(data, 0.1, device) > 0) == any_workers


def test_measured_settings_are_saved_and_nothing_is_left_open(tiny_run):
    run = tiny_run(steps=None, minutes=0.005, workers=None, precision="auto")
    s = run.settings
    assert s.steps is not None and s.steps >= 1
    assert s.precision in ("fp32", "bf16")
    assert s.workers is not None


def test_measuring_leaves_the_run_as_its_seed_makes_it(tiny_run):
    """The trial steps train a copy: the same weights come out with and without them."""
    from safetensors.torch import load_file

    measured, told = tiny_run(out="a", workers=None), tiny_run(out="b", workers=0)
    a, b = (load_file(r.folder / "encoder.safetensors") for r in (measured, told))
    assert all(torch.equal(a[k], b[k]) for k in a)

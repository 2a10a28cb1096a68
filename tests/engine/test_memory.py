"""When memory is short: recomputed activations, micro-batches, and messages to the user."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nolabel import methods, recipes
from nolabel.backbones.base import Backbone
from nolabel.config import Request
from nolabel.data.creatures.world import Creatures
from nolabel.engine import calibrate, cost
from nolabel.engine.build import build
from nolabel.engine.measurement import measurement
from nolabel.engine.memory import explain_out_of_memory
from nolabel.engine.resolve import resolve
from nolabel.errors import OutOfMemory, UsageError
from nolabel.methods.base import RecipeContext
from nolabel.testing import build_on, noise_batch
from nolabel.types import Clock


@pytest.mark.parametrize(
    ("name", "backbone"), [("dinov2", "vit_pico"), ("mae", "vit_pico"), ("simmim", "swin_nano")]
)
def test_activations_that_are_computed_again_give_the_same_gradients_and_need_less(name, backbone):
    kind = methods.load(name)
    options = recipes.automatic(
        kind, RecipeContext(image_size=32, images=1000, patch_size=4)
    ).options
    if name == "dinov2":  # recomputing must drop the same samples
        options = dataclasses.replace(options, drop_path=0.4)
    found = []
    for recompute in (False, True):
        method = build_on(kind, options, backbone, 32)
        for module in method.modules():
            if isinstance(module, Backbone):
                module.recompute = recompute
        torch.manual_seed(3)
        method.step(noise_batch(kind.views(options, 32), 4), Clock(6, 8, 1)).loss.backward()
        grads = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
        found.append((grads, cost.count(method, 4, 32, "fp32").activations))
    (plain, much), (again, little) = found
    assert plain.keys() == again.keys()
    for key, grad in plain.items():
        torch.testing.assert_close(grad, again[key], rtol=1e-5, atol=1e-7)
    assert little < (0.9 if name == "mae" else 0.75) * much  # its decoder is not checkpointed


def run_of(**given):
    known = {"data": "creatures", "out": "unused", "backbone": "vit_pico", "batch_size": 32,
             "precision": "fp32", "minutes": 1.0, "workers": 0, **given}  # fmt: skip
    source = Creatures("train", size=32, count=64)
    return resolve(Request.of("simclr", **known), source=source)


def test_a_batch_that_does_not_fit_is_cut_in_halves_until_it_does(monkeypatch, capsys):
    resolved = run_of()
    built = build(resolved)
    seen = []

    def short(run, method, batch, precision, device, limit):
        seen.append(batch.size)
        if batch.size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return 0.01

    monkeypatch.setattr(calibrate, "_step_seconds", short)
    monkeypatch.setattr(calibrate, "FEW", 32)  # as on a GPU, where whole batches are tried
    found = measurement(resolved, built.method, built.plan, torch.device("cpu"))
    assert seen == [32, 16, 8]
    assert found.settings.accumulate == 4
    assert "4 micro-batches" in capsys.readouterr().err
    # With a number of micro-batches given by the user, there is an error with advice instead.
    resolved = run_of(accumulate=2)
    with (
        pytest.raises(OutOfMemory, match="--accumulate 4") as caught,
        explain_out_of_memory(resolved.run),
    ):
        measurement(resolved, built.method, built.plan, torch.device("cpu"))
    assert "micro-batches of 16 images of a batch of 32" in str(caught.value)
    assert "--checkpoint-activations" in str(caught.value)


def test_on_a_cpu_the_batch_is_split_by_the_memory_that_is_predicted(monkeypatch, capsys):
    resolved = run_of(batch_size=64)
    built = build(resolved)
    whole = calibrate.measure(
        resolved.run, built.method, built.plan, resolved.source, torch.device("cpu"),
        precisions=("fp32",), may_split=True,
    )  # fmt: skip
    assert whole.accumulate == 1 and whole.batch.size == calibrate.MORE
    needed = calibrate._memory(built.method, resolved.run, whole.batch, 64)
    monkeypatch.setattr("nolabel.engine.measurement.usable_memory", lambda on_gpu: 0.3 * needed)
    found = measurement(resolved, built.method, built.plan, torch.device("cpu"))
    assert found.settings.accumulate == 4
    assert "4 micro-batches" in capsys.readouterr().err


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="else"), explain_out_of_memory(run_of().run):
        raise RuntimeError("something else")


def test_activations_of_a_resnet_cannot_be_left_out():
    resolved = run_of(backbone="resnet_nano", checkpoint_activations=True)
    with pytest.raises(UsageError, match="for transformers"):
        build(resolved)

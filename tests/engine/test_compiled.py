"""Compiled layers compute the same results, and nothing is recompiled during a run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from nolabel import methods
from nolabel.engine import compiled, trainer
from nolabel.errors import UsageError
from nolabel.testing import build_small


@pytest.mark.parametrize(
    ("method", "backbone"),
    [("dino", "vit_pico"), ("dinov2", "vit_pico"), ("mae", "vit_pico"), ("simmim", "swin_nano"),
     ("barlow", "resnet_nano")],
)  # fmt: skip
def test_a_compiled_run_is_the_plain_one_and_compiles_in_its_first_steps_alone(
    method, backbone, tiny_run, monkeypatch
):
    """Traced, but run by torch's own kernels: the generated code is not tested here."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    given = {"backbone": backbone, "steps": 6, "log_every": 1}
    if "dino" in method:
        given["drop_path"] = 0.0
    plain = tiny_run(method, "plain", **given)
    monkeypatch.setattr(trainer, "gradients", strict_after(3, trainer.gradients))
    fast = tiny_run(method, "fast", compile=True, **given)
    a, b = (
        [json.loads(x)["loss"] for x in (r.folder / "metrics.jsonl").read_text().splitlines()]
        for r in (plain, fast)
    )
    assert len(a) == 6
    assert counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5)


def strict_after(steps, real):
    """The step's gradients; from some step on, compiling is an error."""

    def gradients(together, batches, parts, clock, *rest):
        stance = "default" if clock.step < steps else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            return real(together, batches, parts, clock, *rest)

    return gradients


def test_every_backbone_has_layers_to_compile():
    counts = {}
    for name in ("vit_pico", "swin_nano", "resnet_nano"):
        kind = methods.load("simclr")
        method = build_small(kind, kind.Options(hidden=16, projection=8), name)
        counts[name] = compiled.compile_layers(method, torch.device("cpu"))
    assert all(n >= 4 for n in counts.values()), counts


def test_without_a_compiler_that_is_said_before_training(tiny_run, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        tiny_run("simclr", compile=True)

"""Runs that commit 3f745f9 stopped halfway are read, evaluated, reported and resumed as it did.

`tests/fixtures/runs_3f745f9/README.md` says how they were made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nolabel as nl
from nolabel.cli import main
from nolabel.data.creatures.world import Creatures
from nolabel.tools.report.page import build_report

RUNS = Path(__file__).parents[1] / "fixtures" / "runs_3f745f9"
NAMES = ("dino-vit", "simclr-resnet", "clip-text", "beit-tokenizer")


@pytest.fixture(params=NAMES)
def old(request, tmp_path):
    """A copy of an old run."""
    return shutil.copytree(RUNS / request.param, tmp_path / request.param)


@pytest.fixture
def one_thread():
    """The number of threads decides the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def expected(folder):
    return json.loads((folder / "expected.json").read_text())


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def knn(folder):
    judge = {"train": Creatures("train", count=300), "test": Creatures("test", count=200)}
    return nl.evaluate("knn", str(folder), **judge).best["value"]


def test_an_old_run_is_evaluated_as_then_and_reported(old, one_thread):
    assert knn(old) == pytest.approx(expected(old)["knn"], abs=0.011)  # two of 200 images
    if old.name == "dino-vit":  # with its pictures
        assert main(["report", str(old)]) == 0
        page = (old / "report.html").read_text()
    else:
        page = build_report(old).read_text()
    assert "16 steps of 16 images" in page and "step 8" in page


def test_an_old_run_resumes_to_the_end_that_it_would_have_reached(old, one_thread):
    assert main(["resume", str(old)]) == 0
    lines, then = metrics(old), expected(old)
    assert [m["step"] for m in lines] == list(range(1, 17))
    assert not (old / "stopped").exists()
    now, whole = (load_file(old / f"{name}.safetensors") for name in ("encoder", "expected"))
    assert now.keys() == whole.keys()
    if (torch.__version__, torch.backends.cpu.get_cpu_capability()) == (
        then["torch"],
        then["capability"],
    ):
        assert [m["loss"] for m in lines] == then["loss"]
        assert [m["gradient_norm"] for m in lines] == then["gradient_norm"]
        assert {k: digest(v) for k, v in now.items()} == then["tensors"]
        if then["text"]:
            text = load_file(old / "text.safetensors")
            flat = torch.cat([v.flatten().float() for _, v in sorted(text.items())])
            assert digest(flat) == then["text"]
    assert [m["loss"] for m in lines] == pytest.approx(then["loss"], rel=2e-3)
    for name, value in now.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=2e-3, msg=name)
    assert knn(old) == pytest.approx(then["knn_at_the_end"], abs=0.021)


def test_an_old_encoder_file_alone_loads_all_its_weights(tmp_path):
    file = shutil.copy(RUNS / "dino-vit" / "encoder.safetensors", tmp_path)
    enc = nl.load(str(file))
    loaded = {digest(v) for v in enc.backbone.state_dict().values()}
    assert {digest(v) for v in load_file(file).values()} <= loaded
    assert enc.embed(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 24)

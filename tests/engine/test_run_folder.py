"""A run's folder: what is in it, and what is never replaced."""

from __future__ import annotations

import json

import pytest

from nolabel.errors import UsageError


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

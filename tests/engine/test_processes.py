"""Two processes, started by torchrun, give the results of one; a stop request stops all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nolabel.cli import main
from nolabel.engine.checkpoint import load_checkpoint

pytestmark = pytest.mark.long

# Plain SGD and a low rate, so that differences by the order of sums are not amplified.
GIVEN = ["--data", "creatures", "--backbone", "vit_pico", "--batch-size", "24", "--hidden", "32",
         "--projection", "8", "--precision", "fp32", "--workers", "0", "--device", "cpu",
         "--log-every", "2", "--optim.name", "sgd", "--optim.lr", "0.01"]  # fmt: skip
TOGETHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*args, env=ENV):
    return subprocess.Popen(
        [sys.executable, *TOGETHER, "-m", "nolabel", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip


def done(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def weights(folder):
    return load_file(folder / "encoder.safetensors")


def near(a, b, atol=2e-5):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-3, atol=atol, msg=name)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    assert main(["pretrain", "simclr", *GIVEN, "--steps", "8", "--out", str(folder)]) == 0
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_end_with_the_weights_of_one_and_write_once(one, tmp_path):
    folder, table = tmp_path / "run", tmp_path / "run.json"
    given = ["--steps", "8", "--out", str(folder), "--json", str(table)]
    code, out, err = done(start("pretrain", "simclr", *GIVEN, *given))
    assert code == 0, err
    near(weights(one), weights(folder))
    assert out.count("\nfolder ") == 1 and err.count("Done: 8 steps") == 1
    assert json.loads(table.read_text())["settings"]["batch_size"] == 24
    both = list(zip(lines(one), lines(folder), strict=True))
    assert [a["step"] for a, _ in both] == [2, 4, 6, 8]
    for a, b in both:
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
        assert a["agreement"] == pytest.approx(b["agreement"], abs=1e-4)
        # The signals are of the global batch.
        assert a["effective_rank"] == pytest.approx(b["effective_rank"], rel=1e-3)


def test_a_signal_to_one_process_stops_all_at_one_step_and_one_process_goes_on(one, tmp_path):
    folder = tmp_path / "run"
    process = start("pretrain", "simclr", *GIVEN, "--steps", "2000", "--out", str(folder))
    try:
        wait_for(lambda: (folder / "metrics.jsonl").is_file() and len(lines(folder)) > 1)
        second = [p for p in children(process.pid) if environment(p).get("RANK") == "1"]
        os.kill(second[0], signal.SIGTERM)
        code, _, err = done(process)
    finally:
        process.kill()
    assert code != 0
    assert "everything is saved" in err
    step = int((folder / "stopped").read_text())
    assert load_checkpoint(folder).step == step < 2000

    # One process continues the run that two processes stopped.
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("steps: 2000", f"steps: {step + 2}"))
    assert main(["resume", str(folder)]) == 0
    assert not (folder / "stopped").exists()
    assert [r["step"] for r in lines(folder)][-1] == step + 2
    assert lines(folder)[-1]["resumed_at"] == step


def test_sharded_processes_do_the_same_and_one_goes_on_with_what_they_saved(tmp_path):
    """With AdamW, whose moments are sharded too, and random masks: saving on rank 0 must not change
    the random state, which is equal on all ranks."""
    given = [*GIVEN[:6], *GIVEN[10 : GIVEN.index("--optim.name")], "--optim.lr", "1e-4",
             "--optim.warmup-epochs", "0", "--checkpoint-every", "4", "--steps", "6",
             "--prototypes", "64", "--drop-path", "0",
             "--shared-head"]  # fmt: skip
    one, sharded = tmp_path / "one", tmp_path / "sharded"
    process = start("pretrain", "ibot", *given, "--out", str(sharded), "--shard",
                    "--shard-layers")  # fmt: skip
    assert main(["pretrain", "ibot", *given, "--out", str(one)]) == 0
    code, _, err = done(process)
    assert code == 0, err
    near(weights(one), weights(sharded), atol=1e-4)
    for a, b in zip(lines(one), lines(sharded), strict=True):
        for key in ("loss", "gradient_norm", "update_size", "momentum_distance"):
            assert a[key] == pytest.approx(b[key], rel=5e-3), key
    whole = weights(sharded)
    (sharded / "checkpoints" / "step-00000006.ckpt").unlink()  # from step 4, by one process
    assert main(["resume", str(sharded)]) == 0
    near(whole, weights(sharded), atol=1e-4)


def test_a_batch_that_the_processes_cannot_share_is_refused_once_with_what_fits(tmp_path):
    folder = tmp_path / "run"
    given = [*GIVEN, "--steps", "2", "--out", str(folder)]
    given[given.index("24")] = "25"
    code, _, err = done(start("pretrain", "simclr", *given))
    assert code != 0
    assert err.count("cannot be cut into 2 equal parts") == 1  # by rank 0 only
    assert "24 or 26" in err


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def children(pid):
    """The process's descendants."""
    found = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def environment(pid):
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)

"""A run that was killed, stopped or damaged is resumed exactly."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nolabel.cli import main
from nolabel.engine import stop
from nolabel.engine.checkpoint import load_checkpoint
from nolabel.engine.stop import StopRequest
from nolabel.errors import FileDamaged, Stopped
from nolabel.testing import TINY

STEPS = 24
# Dropped blocks draw from the random state in every step.
OPTIONS = {**TINY, "dino": {**TINY["dino"], "drop_path": 0.1}}


def command(method: str, photos: Path | str, out: Path, workers: int) -> list[str]:
    flags = []
    for key, value in OPTIONS[method].items():
        flags += [f"--{key.replace('_', '-')}", str(value)]
    return [
        sys.executable, "-m", "nolabel", "pretrain", method, "--data", str(photos), "--out",
        str(out), "--steps", str(STEPS), "--batch-size", "8", "--precision", "fp32", "--backbone",
        "vit_pico", "--image-size", "32", "--workers", str(workers), "--checkpoint-every", "3",
        "--log-every", "1", "--device", "cpu", "--max-bad", "0.5", *flags,
    ]  # fmt: skip


def quiet(args, **kwargs):
    return subprocess.run(args, capture_output=True, text=True, timeout=300, **kwargs)


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl holds the step, the process ends, or a minute is over."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        file = out / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)


def check_kill_and_resume(
    method: str, data: Path | str, workers: int, tmp_path: Path, *, start: bool
) -> Path:
    """Trains without interruption, and killed and resumed; all must be equal.

    Returns the folder of the second run.

    Args:
        start: whether a process of its own resumes, as a user starts it.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(method, data, whole, workers)[3:]) == 0

    step = random.Random(f"{method}{workers}").randint(4, STEPS - 4)
    process = subprocess.Popen(
        command(method, data, killed, workers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for_step(killed, step, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "encoder.safetensors").exists() or load_checkpoint(killed).step < STEPS

    if start:
        done = quiet([sys.executable, "-m", "nolabel", "resume", str(killed)])
        assert done.returncode == 0, done.stderr
    else:
        assert main(["resume", str(killed)]) == 0
    a, b = ((f / "encoder.safetensors").read_bytes() for f in (whole, killed))
    assert a == b
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines] == list(range(1, STEPS + 1))
    losses = [json.loads(x)["loss"] for x in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [m["loss"] for m in lines] == losses
    return killed


@pytest.mark.long
@pytest.mark.parametrize(("method", "workers"), [("dino", 0), ("mae", 2), ("simclr", 2)])
def test_killed_at_a_random_step_and_resumed_the_encoder_is_bit_identical(
    method, workers, photos, tmp_path
):
    check_kill_and_resume(method, photos, workers, tmp_path, start=method == "dino")


@pytest.mark.parametrize("kind", ["manifest", "shards", "bad files"])
def test_every_kind_of_source_resumes_bit_identical(kind, photos, tmp_path, monkeypatch):
    from nolabel.data.open import open_source
    from nolabel.tools.pack import Packing, pack

    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "cache"))
    files = sorted(photos.rglob("*.png"))
    data: Path | str = tmp_path / "list.csv"
    if kind == "manifest":
        (tmp_path / "list.csv").write_text("\n".join(["path", *map(str, files)]))
    elif kind == "shards":
        source = open_source(str(photos))
        data = pack(source, tmp_path / "packed", Packing(shard_images=20))["pattern"]
    else:
        data = tmp_path / "photos"
        shutil.copytree(photos, data)
        for bad in sorted(data.rglob("*.png"))[::7]:
            bad.write_bytes(bad.read_bytes()[:100])
    killed = check_kill_and_resume("simclr", data, 2, tmp_path, start=False)
    if kind == "bad files":
        # Each bad file is listed once, with and without a kill.
        listed = [set((r / "skipped.jsonl").read_text().splitlines())
                  for r in (killed, tmp_path / "whole")]  # fmt: skip
        assert listed[0] == listed[1] and len(listed[0]) == len(files[::7])


def test_sigterm_saves_and_leaves_with_75(photos, tmp_path):
    out = tmp_path / "run"
    args = command("simclr", photos, out, 0)
    args[args.index("--steps") + 1] = "100000"
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 5, process)
    process.send_signal(signal.SIGTERM)  # as from SLURM
    process.send_signal(signal.SIGINT)  # and at once from a launcher, by another signal
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "nolabel resume" in err
    assert load_checkpoint(out).step >= 5


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_what_systems_send_is_a_request_to_stop_and_is_given_back(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert request.requested
        os.kill(os.getpid(), number)  # clusters may send it twice
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_one_more_request_after_a_while_is_immediate(name, monkeypatch):
    killed, now = [], [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stop.os, "kill", lambda pid, number: killed.append(number))
    request = StopRequest()
    for later in (0.0, 0.5, stop.ONE_REQUEST):
        assert not killed
        now[0] = 100.0 + later
        request._handle(getattr(signal, name), None)
    assert killed == ([] if "USR" in name else [signal.SIGKILL])


def test_three_resumes_in_a_row_equal_none(photos, tmp_path, monkeypatch):
    import nolabel as nl
    from nolabel.engine import train, trainer

    def run(out):
        nl.pretrain(
            "dino", data=str(photos), out=out, quiet=True, steps=8, batch_size=8,
            precision="fp32", workers=0, backbone="vit_pico", image_size=32, **OPTIONS["dino"],
        )  # fmt: skip

    run(tmp_path / "whole")

    class StopAfterTwo(trainer.StopRequest):
        """Asks to stop at the second step of each session."""

        asked = 0

        @property
        def requested(self):
            self.asked += 1
            return self.asked >= 2

        @requested.setter
        def requested(self, value):
            pass

    monkeypatch.setattr(trainer, "StopRequest", StopAfterTwo)
    parts = tmp_path / "parts"
    with pytest.raises(Stopped):
        run(parts)
    for expected in (4, 6):
        with pytest.raises(Stopped):
            train.resume(parts, quiet=True)
        assert load_checkpoint(parts).step == expected
    train.resume(parts, quiet=True)
    a, b = ((f / "encoder.safetensors").read_bytes() for f in (tmp_path / "whole", parts))
    assert a == b


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny_run):
    run = tiny_run("dino", checkpoint_every=1)
    files = sorted((run.folder / "checkpoints").glob("*.ckpt"))
    assert len(files) == 2
    raw = bytearray(files[-1].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[-1].write_bytes(raw)
    loaded = load_checkpoint(run.folder)
    assert loaded.step == 3
    assert "damaged" in loaded.notes[0]
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(FileDamaged, match="--init"):
        load_checkpoint(run.folder)

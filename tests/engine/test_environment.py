"""What a run ran on."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from nolabel.engine import environment as env


def test_the_environment_is_plain_json_with_versions_and_hardware():
    found = env.environment()
    assert json.loads(json.dumps(found)) == found
    assert {"python", "torch", "torchvision", "timm", "numpy", "nolabel"} <= found[
        "versions"
    ].keys()
    assert found["versions"]["nolabel"] != "unknown"
    assert found["cores"] >= 1 and found["cpu"] and found["system"] and found["date"]
    assert found["commit"] is None or len(found["commit"]) == 40


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_package_installed_inside_anothers_checkout_is_not_given_its_commit(
    tmp_path, monkeypatch
):
    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    inside = tmp_path / ".venv" / "environment.py"
    inside.parent.mkdir()
    inside.write_text("")
    monkeypatch.setattr(env, "__file__", str(inside))
    git("commit", "--allow-empty", "-m", "theirs")
    assert env.environment()["commit"] is None  # git does not track the file
    git("add", ".")
    git("commit", "-m", "ours")
    assert len(env.environment()["commit"]) == 40
    monkeypatch.setenv("PATH", "")
    assert env.environment()["commit"] is None  # nor is git needed


def test_another_number_of_threads_is_said_when_a_run_goes_on(tmp_path, monkeypatch):
    file = tmp_path / "environment.json"
    threads = env.environment()["threads"]
    file.write_text(json.dumps({"threads": threads}))
    assert env.threads_note(file) == ""
    monkeypatch.setattr(env.torch, "get_num_threads", lambda: threads + 3)
    note = env.threads_note(file)
    assert f"started with {threads} threads and goes on with {threads + 3}" in note
    assert f"OMP_NUM_THREADS={threads}" in note
    for damaged in ("", "[]", "{}", '{"threads": "many"}'):  # older versions kept none
        file.write_text(damaged)
        assert env.threads_note(file) == ""
